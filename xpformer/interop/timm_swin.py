"""Swin by timm's names and by Microsoft's, which differ in where merging stands and in what the classifier is called.

What merges the tokens of stage s is ``layers.{s}.downsample`` in Microsoft's files and ``layers.{s + 1}.downsample`` in
timm's; the order of the four tokens is the same.  The shapes say every size but the image's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from xpformer.errors import CheckpointError, ConfigError
from xpformer.interop.documents import MOST_BLOCKS, Keys
from xpformer.interop.hf_swin import FRESH
from xpformer.interop.layouts import ROW, TRANSPOSED, Entry, Stored, Table, affine, flat_kernel, one
from xpformer.interop.timm import shape_of
from xpformer.models.swin import MOST_STAGES, SwinConfig

__all__ = ["FRESH", "ignores", "is_swin", "names", "notes", "read_config", "table"]

_BLOCK = re.compile(r"layers\.(\d{1,6})\.blocks\.(\d{1,6})\.")
_SAID_BY_SHAPES = (
    *("patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"),
    "qkv_bias",
)


def is_swin(document: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` of timm is of a Swin, even of its second version, which is another model."""
    return str(document.get("architecture")).startswith("swin")


def names(stored: Stored) -> dict[str, str]:
    """Microsoft's name of each tensor that timm calls otherwise."""
    found = {name: re.sub(r"^head\.fc\.", "head.", name) for name in stored.shapes}
    if "layers.0.downsample.reduction.weight" not in stored.shapes:
        pattern = re.compile(r"^layers\.(\d{1,6})\.downsample\.")
        found |= {n: pattern.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample.", new) for n, new in found.items()}
    return found


def ignores(name: str) -> bool:
    """Whether a tensor is computed."""
    return name.endswith((".relative_position_index", ".attn_mask"))


def read_config(where: str, document: Mapping[str, Any], stored: Stored) -> SwinConfig:
    """The sizes that the shapes say; the image's is in ``model_args``, in ``pretrained_cfg``, or in the name.

    Args:
        where: of the document.
        document: ``config.json``.
        stored: the tensors, by Microsoft's names.

    Raises:
        CheckpointError: if a tensor is missing that says a size.
        ConfigError: if it is another architecture.
    """
    k = Keys(where, document)
    name = k.take("architecture")
    known = re.fullmatch(r"swin_[a-z]+_patch\d+_window\d+_(\d{1,6})([._].*)?", str(name))
    if known is None:
        raise k.wrong("architecture", "a Swin with windows of one size, such as swin_tiny_patch4_window7_224")
    k.only("global_pool", "avg")
    given, trained = k.take("model_args") or {}, k.take("pretrained_cfg")
    if not isinstance(given, Mapping):
        raise k.wrong("model_args", "an object")
    arguments = Keys(f"{where}: model_args", given)
    shape = Keys(f"{where}: pretrained_cfg", trained if isinstance(trained, Mapping) else {})
    _, *size = shape.integers("input_size", (3, int(known[1]), int(known[1])))
    image_size = arguments.square("img_size", Keys(shape.where, {"input_size": size}).square("input_size", 0))
    for key, value in (("global_pool", "avg"), ("act_layer", "gelu"), ("always_partition", False)):
        arguments.only(key, value)
    for key in _SAID_BY_SHAPES:
        arguments.take(key)
    if left := arguments.untaken():
        raise arguments.wrong(left[0], "a model without it: what it changes is not supported")
    dim, channels, patch, columns = shape_of(stored, "patch_embed.proj.weight", 4)
    if patch != columns or min(dim, channels, patch) < 1:
        raise CheckpointError(f"{stored.where}: patches of {patch} x {columns} are not square, which is not supported")
    depths = _depths(stored)
    tables = [shape_of(stored, f"layers.{s}.blocks.0.attn.relative_position_bias_table", 2) for s in range(len(depths))]
    last = len(depths) - 1
    hidden, width = shape_of(stored, f"layers.{last}.blocks.0.mlp.fc1.weight", 2)[0], dim * 2**last
    mlp_ratio = hidden / width
    try:
        return SwinConfig(
            image_size=image_size,
            channels=channels,
            classes=shape_of(stored, "head.weight", 2)[0] if "head.weight" in stored.shapes else 2,
            patch_size=patch,
            dim=dim,
            depths=depths,
            heads=tuple(heads for _, heads in tables),
            window=max((math.isqrt(rows) + 1) // 2 for rows, _ in tables),
            mlp_ratio=mlp_ratio if int(width * mlp_ratio) == hidden else math.nextafter(mlp_ratio, math.inf),
            qkv_bias="layers.0.blocks.0.attn.qkv.bias" in stored.shapes,
            positions="learned" if "absolute_pos_embed" in stored.shapes else "none",
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _depths(stored: Stored) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks = {(int(m[1]), int(m[2])) for name in stored.shapes if (m := _BLOCK.match(name))}
    counts = [sum(stage == s for stage, _ in blocks) for s in range(len({stage for stage, _ in blocks}))]
    if not 1 <= len(counts) <= MOST_STAGES or min(counts) < 1 or sum(counts) > MOST_BLOCKS:
        raise CheckpointError(
            f"{stored.where}: has {len(blocks):,} blocks in {len(counts):,} stages; expected layers.0.blocks.0 and so "
            f"on, 1 to {MOST_STAGES} stages, as in a Swin of timm"
        )
    return tuple(counts)


def notes(where: str, config: SwinConfig) -> list[str]:
    """A line on each stage that timm computes otherwise: it shifts a grid before it pads it, transformers after."""
    cuts = [config.windows(stage, 1) for stage, depth in enumerate(config.depths) if depth > 1]
    return [
        f"{where}: windows of {cut.window[0]} do not tile a grid of {cut.grid[0]} x {cut.grid[1]}; it is padded and "
        "then shifted, as in transformers, where timm shifts and then pads, so that outputs differ from timm's"
        for cut in cuts
        if any(cut.shift) and cut.padded != cut.grid
    ]


def table(config: SwinConfig) -> Table:
    """Where every parameter stands, by Microsoft's names."""
    return dict(_entries(config))


def _entries(c: SwinConfig) -> Iterator[tuple[str, Entry]]:
    yield from affine("embedding.projection", "patch_embed.proj", flat_kernel(c.channels, c.patch_size))
    yield from affine("patch_norm", "patch_embed.norm")
    yield from one("positions.weight", "absolute_pos_embed", ROW)
    for s, depth in enumerate(c.depths):
        for b in range(depth):
            block, theirs = f"stages.{s}.blocks.{b}", f"layers.{s}.blocks.{b}"
            yield from affine(f"{block}.norm1", f"{theirs}.norm1")
            yield from affine(f"{block}.attention.qkv", f"{theirs}.attn.qkv", TRANSPOSED)
            yield from one(f"{block}.attention.table", f"{theirs}.attn.relative_position_bias_table")
            yield from affine(f"{block}.attention.projection", f"{theirs}.attn.proj", TRANSPOSED)
            yield from affine(f"{block}.norm2", f"{theirs}.norm2")
            yield from affine(f"{block}.mlp.fc1", f"{theirs}.mlp.fc1", TRANSPOSED)
            yield from affine(f"{block}.mlp.fc2", f"{theirs}.mlp.fc2", TRANSPOSED)
        yield from affine(f"stages.{s}.merging.norm", f"layers.{s}.downsample.norm")
        yield from affine(f"stages.{s}.merging.reduction", f"layers.{s}.downsample.reduction", TRANSPOSED)
    yield from affine("norm", "norm")
    yield from affine("head.output", "head", TRANSPOSED)
