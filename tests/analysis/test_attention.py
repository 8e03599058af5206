"""Attention maps: recomputed by an observer, equal to what the operation kept, and drawn."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer import GPT, Context, GPTConfig, Swin, SwinConfig, ViT, ViTConfig
from xpformer.analysis import drawing
from xpformer.analysis.attention import (
    attention_figure,
    attention_maps,
    covered,
    grids,
    received,
    token_attention_figure,
    token_label,
)
from xpformer.errors import DataError
from xpformer.functional import attention
from xpformer.functional.attention import attention_scores
from xpformer.functional.window_partition import Windows, cut


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


def test_windows_are_put_together(tmp_path):
    """Of a shifted grid of 5 x 5 in windows of 2: each patch is where it was in the image."""
    model = Swin(SwinConfig.preset("tiny"), seed=1).to("numpy", "float64")
    maps = attention_maps(model, np.random.default_rng(0).standard_normal((3, 2, 9, 9)))
    where = grids(model)
    assert maps.keys() == where.keys() == {f"stages.{s}.blocks.{b}.attention" for s in (0, 1) for b in (0, 1)}
    name = "stages.0.blocks.1.attention"
    weights, windows = maps[name], where[name]
    assert (windows.grid, windows.shift) == ((5, 5), (1, 1))
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-12)
    patches = cut(np.arange(1, 26.0)[:, None], windows)[..., 0]  # 0 in the padding
    found = received(weights, windows).reshape(3, 2, 25)
    for n, window in enumerate(patches):
        for j, patch in enumerate(window.astype(int)):
            if patch:
                read = weights[:, n, :, window > 0, j].mean(axis=0)  # by the tokens of its window that are no padding
                np.testing.assert_allclose(found[:, :, patch - 1], read, rtol=1e-12)
    assert attention_figure(np.zeros((3, 9, 9), np.uint8), maps, where, tmp_path / "swin.png").stat().st_size > 1000
    assert set(covered(model).items()) >= {(name, (10, 10)), ("stages.1.blocks.0.attention", (12, 12))}
    vit = ViT(ViTConfig.preset("tiny"))
    assert set(grids(vit).values()) == {vit.grid}


def test_picture_shows_where_a_head_looks(tmp_path):
    from PIL import Image

    image = np.zeros((1, 8, 8), np.uint8)
    maps, grid = {"blocks.0.attention": np.full((1, 2, 4, 4), 0.25)}, {"blocks.0.attention": (2, 2)}
    flat = np.asarray(Image.open(attention_figure(image, maps, grid, tmp_path / "flat.png")))
    maps["blocks.0.attention"] = np.tile(np.array([1.0, 0.0, 0.0, 0.0]), (1, 2, 4, 1))
    peaked = np.asarray(Image.open(attention_figure(image, maps, grid, tmp_path / "peaked.png")))
    assert flat.shape == peaked.shape
    assert flat.shape[1] > 300
    assert np.mean(flat != peaked) > 0.05
    with pytest.raises(DataError, match="no attention"):
        attention_figure(image, {}, grid, tmp_path / "none.png")


def test_each_head_is_named_once(tmp_path, monkeypatch):
    """Later stages of a Swin have more heads: those that come with a row are named above it."""
    model = Swin(SwinConfig.preset("tiny"), seed=1).to("numpy", "float64")
    maps = attention_maps(model, np.zeros((1, 2, 9, 9)))
    drawn = []
    monkeypatch.setattr("xpformer.analysis.attention.save_figure", lambda figure, path: drawn.append(figure) or path)
    attention_figure(np.zeros((3, 9, 9), np.uint8), maps, grids(model), tmp_path / "swin.png")
    most = max(weights.shape[-3] for weights in maps.values())
    assert most > next(iter(maps.values())).shape[-3]
    assert [a.get_title() for a in drawn[0].axes if a.get_title()] == [f"head {h + 1}" for h in range(most)]


def test_a_padded_grid_reaches_beyond_the_picture(tmp_path):
    """Patches of 4 on 5 pixels: of the second row and column one pixel is seen, of either colour."""
    from PIL import Image

    image, path = np.zeros((1, 5, 5), np.uint8), "stages.0.blocks.0.attention"
    left = np.zeros((1, 1, 1, 4, 4))
    left[..., ::2] = 0.5
    where, drawn = {path: Windows((2, 2), (2, 2))}, []
    for name, span in ("image", None), ("padded", {path: (8, 8)}):
        found = attention_figure(image, {path: left}, where, tmp_path / f"{name}.png", covered=span)
        drawn.append(np.asarray(Image.open(found).convert("RGB")).astype(int))
    yellow = [(picture[:, :, 0] > picture[:, :, 2] + 60).sum() for picture in drawn]
    assert drawn[0].shape == drawn[1].shape
    assert yellow[1] > 1.3 * yellow[0]


def test_scores_are_before_the_softmax():
    model = GPT(GPTConfig.preset("tiny"), seed=1).to("numpy", "float64")
    ids = np.array([[1, 5, 3, 0]])
    weights, scores = attention_maps(model, ids), attention_maps(model, ids, attention_scores)
    assert weights.keys() == scores.keys()
    for name, z in scores.items():
        later = np.triu(np.ones((4, 4), bool), 1)
        assert (z[..., later] == -np.inf).all()
        assert np.isfinite(z[..., ~later]).all()
        p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(weights[name], p, rtol=1e-12)


def test_picture_of_a_text(tmp_path):
    from PIL import Image

    scores = np.where(np.tri(3, dtype=bool), 1.0, -np.inf)[None].repeat(2, axis=0)
    labels = ["a", "\u4e00", "\U000e0001"]  # the last one has no glyph in any font
    path = token_attention_figure(labels, np.exp(scores) / 3, scores, tmp_path / "text.png", title="one block")
    assert np.asarray(Image.open(path)).shape > (500, 500)


def test_labels_of_tokens():
    assert [token_label(t) for t in (b"a", b" the", b"\n", b"\t\r", b"\xe4\xb8", "\u4e00".encode(), b"\x00")] == [
        "a",
        "\u2423the",
        "\u23ce",
        "\u21e5\u240d",
        "\\xe4\\xb8",
        "\u4e00",
        "U+0000",
    ]


def test_fonts(monkeypatch):
    """Characters that DejaVu lacks come from the first other font that has them; what none has is named."""
    assert drawing.fonts_for(["abc"]) == (["DejaVu Sans"], set())
    manager = drawing.matplotlib().font_manager.fontManager
    known = drawing._characters
    one = next(font.fname for font in manager.ttflist if font.name == "STIXGeneral")
    monkeypatch.setattr(drawing, "_characters", lambda file: known(file) | ({"\u4e00"} if file == one else set()))
    families, missing = drawing.fonts_for(["a\u4e00", "\U000e0001"])
    assert families == ["DejaVu Sans", "STIXGeneral"]
    assert missing == {"\U000e0001"}
    assert known("/dev/null") == set()
