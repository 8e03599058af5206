"""Patches of an image that they do not tile."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer.backend import Backend
from xpformer.errors import ShapeError
from xpformer.layers import FlattenPatches


def test_a_padded_image_is_an_image_with_zeros_behind(portable: Backend, rng: np.random.Generator) -> None:
    layer, plain = FlattenPatches(2, 3, 5, pad=True).to(portable, "float64"), FlattenPatches(2, 3, 5)
    plain.to(portable, "float64").load_state(layer.state())
    image = rng.standard_normal((4, 2, 7, 5))
    whole = np.pad(image, ((0, 0), (0, 0), (0, 2), (0, 1)))
    assert layer.grid(7, 5) == plain.grid(9, 6) == (3, 2)
    assert np.array_equal(layer(image), plain(whole))
    assert np.array_equal(layer(whole), plain(whole))
    with pytest.raises(ShapeError, match="patchify"):
        plain(image)
