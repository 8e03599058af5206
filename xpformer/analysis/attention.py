"""Attention maps: how much each token reads of each other, in every block and head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpformer.analysis.drawing import INK, LIGHT, fonts_for, new_figure, save_figure, show_image
from xpformer.array import HostArray, size
from xpformer.errors import DataError
from xpformer.functional._op import Op, Pair
from xpformer.functional.attention import attention, attention_weights
from xpformer.functional.window_partition import Windows, cut, join
from xpformer.layers import Context, Layer, MultiHeadAttention, Observer, WindowAttention


class AttentionMaps(Observer):
    """Recomputes the attention weights of every block from its queries and keys; no operation has to keep them.

    ``maps`` is by the path of the attention layer: (B, H, T, S) host arrays whose rows sum to one, of windows
    (B, N, H, T, S); with ``of`` =
    :func:`~xpformer.functional.attention.attention_scores` the scores before the softmax.
    """

    def __init__(self, to_numpy: Callable[[Any], HostArray], of: Callable[..., Any] = attention_weights) -> None:
        self.maps: dict[str, HostArray] = {}
        self.to_numpy, self.of = to_numpy, of

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """The weights before dropout."""
        if op is attention:
            query, key, _, *mask = arrays
            how = {name: options[name] for name in ("causal", "scale") if name in options}
            self.maps[path] = self.to_numpy(self.of(query, key, *mask, **how))


def attention_maps(model: Layer, inputs: Any, of: Callable[..., Any] = attention_weights) -> dict[str, HostArray]:
    """The attention weights (or scores) of one inference: path of the layer to (B, H, T, S).

    Args:
        model: on a backend.
        inputs: what its ``forward`` takes, on that backend.
        of: what is recomputed of query, key and mask.
    """
    maps = AttentionMaps(model.backend.to_numpy, of)
    model.forward(inputs, Context(model.backend, observer=maps))
    return maps.maps


def grids(model: Layer) -> dict[str, tuple[int, int] | Windows]:
    """Where the tokens of each attention layer of a ViT or a Swin stand, by its path."""
    layers = {path: layer for path, layer in model.named_layers() if isinstance(layer, MultiHeadAttention)}
    grid = getattr(model, "grid", (0, 0))
    return {path: a.windows if isinstance(a, WindowAttention) else grid for path, a in layers.items()}


def covered(model: Any) -> dict[str, tuple[int, int]]:
    """Rows and columns of pixels under the grid of each attention layer of a Swin: padding reaches beyond the image."""
    found = {}
    for path, grid in grids(model).items():
        if isinstance(grid, Windows):
            stride = model.config.strides[int(path.split(".")[1])]  # stages.0.blocks.1.attention
            found[path] = (grid.grid[0] * stride, grid.grid[1] * stride)
    return found


def received(weights: HostArray, grid: tuple[int, int] | Windows) -> HostArray:
    """How much each patch is read: (B, H, T, S) -> (B, H, rows, columns).

    With a class token in front (T = rows x columns + 1) it is what that token reads; else the mean over all tokens.
    Windows, (B, N, H, T, S), are put together: a patch is read by the tokens of its own, padding left out.
    """
    if isinstance(grid, Windows):
        reads = np.asarray(cut(np.ones((size(grid.grid), 1)), grid))[:, None]  # (N, 1, T, 1), 0 in the padding
        mean = (weights * reads).sum(axis=-2) / reads.sum(axis=-2)  # (B, N, H, S)
        windows: Any = np.moveaxis(mean, 2, -1)  # (B, N, S, H)
        whole = np.asarray(join(windows, grid))  # (B, rows columns, H)
        return np.moveaxis(whole, 1, 2).reshape(len(weights), -1, *grid.grid)
    patches = grid[0] * grid[1]
    extra = weights.shape[-1] - patches
    if extra not in (0, 1):
        tokens = weights.shape[-1]
        raise DataError(f"attention over {tokens} tokens does not fit a grid of {grid[0]} x {grid[1]} patches")
    read = weights[:, :, 0, 1:] if extra else weights.mean(axis=2)
    return read.reshape(*weights.shape[:2], *grid)


def attention_figure(
    image: HostArray,
    maps: Mapping[str, HostArray],
    grids: Mapping[str, tuple[int, int] | Windows],
    path: Path,
    *,
    covered: Mapping[str, tuple[int, int]] | None = None,
    title: str = "",
) -> Path:
    """One row a block, one column a head: the image, brighter where its patches are read more.

    Args:
        image: (C, H, W) ``uint8``.
        maps: of :func:`attention_maps`, for this one image (B = 1).
        grids: of :func:`grids`.
        path: of the PNG file.
        covered: of :func:`covered`; what has none covers the image.
        title: above the picture.
    """
    rows = {name: received(weights[:1], grids[name])[0] for name, weights in maps.items()}
    if not rows:
        raise DataError(f"{path}: the model has no attention to draw")
    columns = 1 + max(len(heads) for heads in rows.values())
    figure = new_figure(min(10.0, 1.7 * columns), 1.75 * len(rows) + 0.5, title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    named = 0
    for line, (name, heads) in zip(axes, rows.items(), strict=True):
        down, across = (covered or {}).get(name, image.shape[1:])
        extent = (-0.5, across - 0.5, down - 0.5, -0.5)
        show_image(line[0], image, LIGHT, 0.8)
        line[0].set_ylabel(name.removesuffix(".attention"), fontsize=9, color=INK)
        for head, spot in enumerate(line[1:]):
            if head >= len(heads):
                spot.set_axis_off()
                continue
            show_image(spot, image, LIGHT, 0.8)
            strength = heads[head] / max(float(heads[head].max()), np.finfo(float).tiny)
            spot.imshow(strength, cmap="viridis", alpha=0.62, extent=extent, vmin=0, vmax=1, interpolation="bicubic")
            spot.set(xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))
            if head == named:  # above the first row that has so many
                named += 1
                spot.set_title(f"head {named}", fontsize=9, color=INK, pad=3.5)
    return save_figure(figure, path)


def token_attention_figure(
    labels: Sequence[str], weights: HostArray, scores: HostArray, path: Path, *, title: str = ""
) -> Path:
    """One block: a column a head, its weights above its scores; row = the token that reads, column = what it reads.

    Args:
        labels: of the T tokens; glyphs that no font of this machine has become code points, as U+4E00.
        weights: (H, T, T), rows sum to one.
        scores: (H, T, T), -inf where a token may not be read.
        path: of the PNG file.
        title: above the picture.
    """
    heads, count, _ = weights.shape
    families, missing = fonts_for(labels)
    shown = ["".join(f"U+{ord(c):04X}" if c in missing else c for c in label) for label in labels]
    side = min(6.0, max(2.4, 0.17 * count + 0.6))
    figure = new_figure(max(4.0, side * heads + 0.8), 2 * side + 0.9, title)
    axes = figure.subplots(2, heads, squeeze=False)
    size = max(3.0, min(9.0, 45 * side / count))
    turn = 90 if max(map(len, shown)) > 2 else 0
    visible = np.where(np.isfinite(scores), scores, np.nan)
    parts = (("weights", weights, "viridis", 0.0, 1.0), ("scores", visible, "cividis", None, None))
    for line, (name, values, colours, low, high) in zip(axes, parts, strict=True):
        for head, spot in enumerate(line):
            drawn = spot.imshow(values[head], cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            spot.set_title(f"head {head + 1}, {name}", fontsize=9, color=INK, pad=3.5)
            spot.set_xticks(range(count), shown, rotation=turn, fontsize=size, fontfamily=families)
            spot.set_yticks(range(count), shown, fontsize=size, fontfamily=families)
            spot.tick_params(length=0, colors=INK)
            bar = figure.colorbar(drawn, ax=spot, shrink=0.8, pad=0.02)
            bar.ax.tick_params(labelsize=7, length=2)
            bar.outline.set_visible(False)
    return save_figure(figure, path)


def token_label(data: bytes) -> str:
    """A token as a label: white space by visible signs, bytes that are no text in hexadecimal."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(signs.get(c, c if c.isprintable() else f"U+{ord(c):04X}") for c in text)
