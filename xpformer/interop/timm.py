"""timm's ViTs: its names, and the ``config.json`` that it puts on the hub.

The names do not say how many heads there are: ``config.json`` does in ``model_args``, else the width tells which of
the published sizes it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from xpformer.data.preprocess import FILTERS, Preprocessor
from xpformer.errors import CheckpointError, ConfigError
from xpformer.interop.documents import MOST_BLOCKS, Keys, are_names, is_number
from xpformer.interop.hf_vit import FRESH, patch_embedding
from xpformer.interop.layouts import ROW, TOKEN, TRANSPOSED, Entry, Stored, Table, affine, one
from xpformer.models.swin import SwinConfig
from xpformer.models.vit import ViTConfig

__all__ = ["FRESH", "is_timm", "read_class_names", "read_config", "read_preprocessor", "shape_of", "table"]

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Width to heads of the published sizes: tiny, small, base, large, huge."""


def is_timm(document: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is timm's."""
    return "architecture" in document and "model_type" not in document


def read_config(where: str, document: Mapping[str, Any], stored: Stored) -> ViTConfig:
    """The sizes that the shapes say, and the number of heads.

    Args:
        where: of the document.
        document: ``config.json``, empty where there is none.
        stored: the tensors.

    Raises:
        CheckpointError: if a tensor is missing that says one.
        ConfigError: if it is another architecture, or nothing says how many heads there are.
    """
    k = Keys(where, document)
    name = k.take("architecture", "vit_base_patch16_224")
    if not isinstance(name, str) or not re.match(r"vit_[a-z0-9]+_patch\d+(_|$)", name):
        raise k.wrong("architecture", "a ViT or a Swin, such as vit_base_patch16_224; of timm no other is read")
    k.only("global_pool", "token")
    given = k.take("model_args") or {}
    if not isinstance(given, Mapping):
        raise k.wrong("model_args", "an object")
    arguments = Keys(f"{where}: model_args", given)
    dim, channels, patch, columns = shape_of(stored, "patch_embed.proj.weight", 4)
    _, tokens, _ = shape_of(stored, "pos_embed", 3)
    depth = len({m[1] for name in stored.shapes if (m := re.match(r"blocks\.(\d+)\.", name))})
    side = math.isqrt(max(0, tokens - 1))
    if patch != columns or side * side != tokens - 1 or min(dim, channels, patch) < 1 or depth > MOST_BLOCKS:
        raise CheckpointError(f"{stored.where}: patches or images are not square, which is not supported")
    heads = arguments.integer("num_heads", HEADS.get(dim, 0) or 1)
    if "num_heads" not in given and dim not in HEADS:
        raise ConfigError(f'{where}: nothing says how many heads there are; add "model_args": {{"num_heads": ...}}')
    for key, value in (("global_pool", "token"), ("class_token", True), ("act_layer", "gelu"), ("pre_norm", False)):
        arguments.only(key, value)
    for key in ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "mlp_ratio", "qkv_bias"):
        arguments.take(key)  # the shapes of the tensors say it
    if left := arguments.untaken():
        raise arguments.wrong(left[0], "a model without it: what it changes is not supported")
    try:
        return ViTConfig(
            image_size=patch * side,
            channels=channels,
            classes=shape_of(stored, "head.weight", 2)[0] if "head.weight" in stored.shapes else 2,
            embedding="conv",
            patch_size=patch,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_ratio=shape_of(stored, "blocks.0.mlp.fc1.weight", 2)[0] / dim,
            qkv_bias="blocks.0.attn.qkv.bias" in stored.shapes,
            head_hidden=shape_of(stored, "pre_logits.fc.weight", 2)[0]
            if "pre_logits.fc.weight" in stored.shapes
            else 0,
        )
    except ConfigError as error:
        text = (
            str(error).replace("heads = ", "num_heads = ").replace("dim = ", "the width of patch_embed.proj.weight = ")
        )
        raise ConfigError(f"{where}: {text}") from error


def shape_of(stored: Stored, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that has to be there, with so many axes."""
    shape = stored.shapes.get(name)
    if shape is None or len(shape) != rank:
        found = "is missing" if shape is None else f"has shape {shape}"
        raise CheckpointError(f"{stored.where}: {name} {found}, expected {rank} axes, as in a model of timm")
    return shape


def read_class_names(where: str, document: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """``label_names``, if each class has one that is printable, and a line if not."""
    names = document.get("label_names") or []
    if are_names(names) and len(names) in (0, classes):
        return tuple(names), []
    return (), [f"{where}: label_names is {names!r:.60}, expected {classes} printable texts, and so is not used"]


def read_preprocessor(where: str, document: Mapping[str, Any], config: ViTConfig | SwinConfig) -> Preprocessor | None:
    """What ``pretrained_cfg`` says is done to a picture: the shorter side resized, the middle cut out."""
    given = document.get("pretrained_cfg")
    if not isinstance(given, Mapping):
        return None
    k = Keys(f"{where}: pretrained_cfg", given)
    size = config.image_size
    filters = {name: name for name in FILTERS}
    figures = {key: k.take(key, [0.5] * config.channels) for key in ("mean", "std")}
    for key, values in figures.items():
        if not isinstance(values, list) or len(values) != config.channels or not all(map(is_number, values)):
            raise k.wrong(key, f"{config.channels} numbers, one a channel")
    mean, std = figures.values()
    part = k.number("crop_pct", 0.9)
    if not 0.01 <= part <= 1:
        raise k.wrong("crop_pct", "a share between 0.01 and 1")
    k.only("crop_mode", "center")
    return Preprocessor(
        (math.floor(size / part),),
        k.choice("interpolation", "bicubic", filters),
        (size, size),
        tuple(map(float, mean)),
        tuple(map(float, std)),
    )


def table(config: ViTConfig) -> Table:
    """Where every parameter stands."""
    return dict(_entries(config))


def _entries(c: ViTConfig) -> Iterator[tuple[str, Entry]]:
    yield from one("token.weight", "cls_token", TOKEN)
    yield from one("positions.weight", "pos_embed", ROW)
    ours, layout = patch_embedding(c)
    yield from affine(ours, "patch_embed.proj", layout)
    for i in range(c.depth):
        block = f"blocks.{i}"
        yield from affine(f"{block}.norm1", f"{block}.norm1")
        yield from affine(f"{block}.attention.qkv", f"{block}.attn.qkv", TRANSPOSED)
        yield from affine(f"{block}.attention.projection", f"{block}.attn.proj", TRANSPOSED)
        yield from affine(f"{block}.norm2", f"{block}.norm2")
        yield from affine(f"{block}.mlp.fc1", f"{block}.mlp.fc1", TRANSPOSED)
        yield from affine(f"{block}.mlp.fc2", f"{block}.mlp.fc2", TRANSPOSED)
    yield from affine("norm", "norm")
    yield from affine("head.hidden", "pre_logits.fc", TRANSPOSED)
    yield from affine("head.output", "head", TRANSPOSED)
