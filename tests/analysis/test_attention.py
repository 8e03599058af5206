"""Attention maps: recomputed by an observer, equal to what the operation kept, and drawn."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer import Context, ViT, ViTConfig
from xpformer.analysis.attention import attention_figure, attention_maps, received
from xpformer.errors import DataError
from xpformer.functional import attention


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_maps_are_the_probabilities_that_the_forward_kept(pool):
    model = ViT(ViTConfig.preset("tiny", pool=pool), seed=1).to("numpy", "float64")
    images = np.random.default_rng(0).standard_normal((3, 1, 6, 6))
    ctx = Context(model.backend, grads=model.gradients())
    model.forward(images, ctx)
    kept = {e.path: e.saved.probabilities for e in ctx.tape or () if e.op is attention}
    maps = attention_maps(model, images)
    assert maps.keys() == kept.keys() == {"blocks.0.attention", "blocks.1.attention"}
    for path, weights in maps.items():
        np.testing.assert_allclose(weights, kept[path], rtol=1e-12)
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-12)
        assert received(weights, model.grid).shape == (3, 2, 3, 3)
    with pytest.raises(DataError, match="does not fit a grid"):
        received(weights, (2, 2))


def test_picture_shows_where_a_head_looks(tmp_path):
    from PIL import Image

    image = np.zeros((1, 8, 8), np.uint8)
    maps = {"blocks.0.attention": np.full((1, 2, 4, 4), 0.25)}
    flat = np.asarray(Image.open(attention_figure(image, maps, (2, 2), tmp_path / "flat.png")))
    maps["blocks.0.attention"] = np.tile(np.array([1.0, 0.0, 0.0, 0.0]), (1, 2, 4, 1))
    peaked = np.asarray(Image.open(attention_figure(image, maps, (2, 2), tmp_path / "peaked.png")))
    assert flat.shape == peaked.shape
    assert flat.shape[1] > 300
    assert np.mean(flat != peaked) > 0.05
    with pytest.raises(DataError, match="no attention"):
        attention_figure(image, {}, (2, 2), tmp_path / "none.png")
