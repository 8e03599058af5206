"""Attention maps: how much each token reads of each other, in every block and head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xpformer.analysis.drawing import INK, LIGHT, new_figure, save_figure, show_image
from xpformer.array import HostArray
from xpformer.errors import DataError
from xpformer.functional._op import Op, Pair
from xpformer.functional.attention import attention, attention_weights
from xpformer.layers import Context, Layer, Observer


class AttentionMaps(Observer):
    """Recomputes the attention weights of every block from its queries and keys; no operation has to keep them.

    ``maps`` is by the path of the attention layer: (B, H, T, S) host arrays whose rows sum to one.
    """

    def __init__(self, to_numpy: Callable[[Any], HostArray]) -> None:
        self.maps: dict[str, HostArray] = {}
        self.to_numpy = to_numpy

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """The weights before dropout."""
        if op is attention:
            query, key, _, *mask = arrays
            how = {name: options[name] for name in ("causal", "scale") if name in options}
            self.maps[path] = self.to_numpy(attention_weights(query, key, *mask, **how))


def attention_maps(model: Layer, inputs: Any) -> dict[str, HostArray]:
    """The attention weights of one inference: path of the layer to (B, H, T, S).

    Args:
        model: on a backend.
        inputs: what its ``forward`` takes, on that backend.
    """
    maps = AttentionMaps(model.backend.to_numpy)
    model.forward(inputs, Context(model.backend, observer=maps))
    return maps.maps


def received(weights: HostArray, grid: tuple[int, int]) -> HostArray:
    """How much each patch is read: (B, H, T, S) -> (B, H, rows, columns).

    With a class token in front (T = rows x columns + 1) it is what that token reads; else the mean over all tokens.
    """
    patches = grid[0] * grid[1]
    extra = weights.shape[-1] - patches
    if extra not in (0, 1):
        tokens = weights.shape[-1]
        raise DataError(f"attention over {tokens} tokens does not fit a grid of {grid[0]} x {grid[1]} patches")
    read = weights[:, :, 0, 1:] if extra else weights.mean(axis=2)
    return read.reshape(*weights.shape[:2], *grid)


def attention_figure(
    image: HostArray, maps: Mapping[str, HostArray], grid: tuple[int, int], path: Path, *, title: str = ""
) -> Path:
    """One row a block, one column a head: the image, brighter where its patches are read more.

    Args:
        image: (C, H, W) ``uint8``.
        maps: of :func:`attention_maps`, for this one image (B = 1).
        grid: rows and columns of patches.
        path: of the PNG file.
        title: above the picture.
    """
    rows = {name: received(weights[:1], grid)[0] for name, weights in maps.items()}
    if not rows:
        raise DataError(f"{path}: the model has no attention to draw")
    columns = 1 + max(len(heads) for heads in rows.values())
    figure = new_figure(min(10.0, 1.7 * columns), 1.75 * len(rows) + 0.5, title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (line, (name, heads)) in enumerate(zip(axes, rows.items(), strict=True)):
        show_image(line[0], image, LIGHT, 0.8)
        line[0].set_ylabel(name.removesuffix(".attention"), fontsize=9, color=INK)
        for head, spot in enumerate(line[1:]):
            if head >= len(heads):
                spot.set_axis_off()
                continue
            show_image(spot, image, LIGHT, 0.8)
            extent = (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)
            strength = heads[head] / max(float(heads[head].max()), np.finfo(float).tiny)
            spot.imshow(strength, cmap="viridis", alpha=0.62, extent=extent, vmin=0, vmax=1, interpolation="bicubic")
            if row == 0:
                spot.set_title(f"head {head + 1}", fontsize=9, color=INK, pad=3.5)
    return save_figure(figure, path)
