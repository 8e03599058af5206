"""Hugging Face's Swin, ``SwinForImageClassification``: its configuration, its names, and what it has not got.

Read are the names on disk, those that transformers 5 uses in memory, and those of ``SwinModel``, which has neither the
prefix ``swin.`` nor a classifier; written are the names on disk.

Stochastic depth on both branches of a block, as in the paper's code, changes nothing of what a trained model computes:
``drop_path_on`` stands under the key ``xpformer`` beside the rate, as all such options do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from xpformer.initializers import resize_distances
from xpformer.interop.documents import MOST_BLOCKS, Keys, Read, converted
from xpformer.interop.hf_vit import ACTIVATIONS, CARRIED, OF_THE_FILE, THEIR_ACTIVATIONS, class_names
from xpformer.interop.layouts import (
    ROW,
    THREE,
    THREE_TRANSPOSED,
    TRANSPOSED,
    Changed,
    Entry,
    Stored,
    Table,
    affine,
    flat_kernel,
    one,
)
from xpformer.models.swin import SwinConfig

MODEL_TYPE = "swin"
ARCHITECTURE, BODY = "SwinForImageClassification", "SwinModel"
FRESH: tuple[str, ...] = ("head.output.weight", "head.output.bias")
"""May be missing: a published backbone has no classifier."""
LEFT: tuple[str, ...] = ("swin.embeddings.mask_token",)
"""Learned, and of no use in classification."""
_CARRIED = (*CARRIED, "encoder_stride", "out_features", "out_indices", "stage_names", "path_norm")
"""Of masked images, of a backbone."""

_KEYS = {
    "dim": "embed_dim",
    "heads": "num_heads",
    "window": "window_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "drop_path": "drop_path_rate",
    "norm_eps": "layer_norm_eps",
    "channels": "num_channels",
}  # what errors call the options
_NEW_NAMES = (
    (r"^(?!swin\.|classifier\.)", "swin."),  # those of SwinModel
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def lacks(config: SwinConfig) -> list[str]:
    """The options of a model that the class cannot have."""
    found = []
    if config.embedding != "flatten":
        found.append(f"embedding = {config.embedding!r}")
    rows, columns = config.grids[-1]
    if config.window > min(rows, columns):
        found.append(f"window = {config.window} on a grid of {rows} x {columns}")
    if config.positions == "learned" and config.image_size % config.patch_size:
        found.append(f"positions = 'learned' of patches in the padding (image_size = {config.image_size})")
    return found


def keys(config: SwinConfig) -> dict[str, Any]:
    """The model's part of ``config.json``."""
    return {
        "embed_dim": config.dim,
        "hidden_size": config.dims[-1],
        "depths": list(config.depths),
        "num_layers": len(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "drop_path_rate": config.drop_path,
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
        "use_absolute_embeddings": config.positions == "learned",
    }


def read_config(where: str, document: Mapping[str, Any]) -> Read:
    """The configuration and the names of the classes.

    Raises:
        ConfigError: naming a key that cannot be, or that our model has no option for.
    """
    k = Keys(where, document)
    names = class_names(k)
    fields: dict[str, Any] = {
        "dim": k.integer("embed_dim", 96),
        "depths": k.integers("depths", (2, 2, 6, 2), MOST_BLOCKS),
        "heads": k.integers("num_heads", (3, 6, 12, 24)),
        "window": k.integer("window_size", 7),
        "mlp_ratio": k.number("mlp_ratio", 4.0),
        "activation": k.choice("hidden_act", "gelu", ACTIVATIONS),
        "dropout": k.number("hidden_dropout_prob", 0.0),
        "attention_dropout": k.number("attention_probs_dropout_prob", 0.0),
        "drop_path": k.number("drop_path_rate", 0.1),
        "drop_path_on": "attention",
        "norm_eps": k.number("layer_norm_eps", 1e-5),
        "image_size": k.square("image_size", 224),
        "patch_size": k.square("patch_size", 4),
        "channels": k.integer("num_channels", 3),
        "qkv_bias": k.boolean("qkv_bias", True),
        "positions": "learned" if k.boolean("use_absolute_embeddings", False) else "none",
        "classes": len(names),
    }
    config = converted(where, SwinConfig, fields, _KEYS)
    stages, width = len(config.depths), config.dims[-1]
    follows = {"hidden_size": width, "num_layers": stages, "num_hidden_layers": stages}
    for key, value in (follows | {"num_attention_heads": list(config.heads)}).items():
        if k.take(key, value) not in (value, None):
            raise k.wrong(key, f"{value}, as embed_dim, depths and num_heads say")
    carried = k.passed_over(*_CARRIED)
    k.passed_over(*OF_THE_FILE)
    return Read(config, names, carried | k.rest(), k.untaken())


def rename(name: str) -> str:
    """The name on disk of a tensor by any of its names."""
    for pattern, replacement in _NEW_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def ignores(name: str) -> bool:
    """Whether a tensor takes no part in classification, or is computed."""
    return name.endswith(".relative_position_index") or name.startswith(LEFT)


def fitted(config: SwinConfig, stored: Stored) -> tuple[Stored, list[str]]:
    """Tables of the configured window cropped where a grid is smaller, so that one for larger images can be read."""
    return cropped_tables(config, table(config), stored)


def cropped_tables(config: SwinConfig, where: Table, stored: Stored) -> tuple[Stored, list[str]]:
    """The tensors, with relative position biases for ``config.window`` cut down to smaller grids, and notes.

    Args:
        config: the model's.
        where: each parameter stands.
        stored: the tensors.
    """
    changes: dict[str, Any] = {}
    notes = []
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        window = config.windows(stage, 0).window[0]
        full, kept = ((2 * w - 1) ** 2 for w in (config.window, window))
        tables = [where[f"stages.{stage}.blocks.{block}.attention.table"].names[0] for block in range(depth)]
        larger = [name for name in tables if full > kept and stored.shapes.get(name) == (full, heads)]
        for name in larger:
            changes[name] = (kept, heads), partial(resize_distances, old=config.window, new=window)
        if larger:
            grid = "{} x {}".format(*config.grids[stage])
            notes.append(
                f"{stored.where}: the tables of stage {stage} are for windows of {config.window}; of these the "
                f"distances are taken that occur in its grid of {grid}"
            )
    return Changed(stored, changes) if changes else stored, notes


def table(config: SwinConfig) -> Table:
    """Where every parameter stands."""
    return dict(_entries(config))


def _entries(c: SwinConfig) -> Iterator[tuple[str, Entry]]:
    kernel = flat_kernel(c.channels, c.patch_size)
    yield from affine("embedding.projection", "swin.embeddings.patch_embeddings.projection", kernel)
    yield from affine("patch_norm", "swin.embeddings.norm")
    yield from one("positions.weight", "swin.embeddings.position_embeddings", ROW)
    for s, depth in enumerate(c.depths):
        for b in range(depth):
            block, theirs = f"stages.{s}.blocks.{b}", f"swin.encoder.layers.{s}.blocks.{b}"
            yield from affine(f"{block}.norm1", f"{theirs}.layernorm_before")
            qkv = [f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")]
            yield f"{block}.attention.qkv.weight", Entry(tuple(f"{n}.weight" for n in qkv), THREE_TRANSPOSED)
            yield f"{block}.attention.qkv.bias", Entry(tuple(f"{n}.bias" for n in qkv), THREE)
            yield from one(f"{block}.attention.table", f"{theirs}.attention.self.relative_position_bias_table")
            yield from affine(f"{block}.attention.projection", f"{theirs}.attention.output.dense", TRANSPOSED)
            yield from affine(f"{block}.norm2", f"{theirs}.layernorm_after")
            yield from affine(f"{block}.mlp.fc1", f"{theirs}.intermediate.dense", TRANSPOSED)
            yield from affine(f"{block}.mlp.fc2", f"{theirs}.output.dense", TRANSPOSED)
        yield from affine(f"stages.{s}.merging.norm", f"swin.encoder.layers.{s}.downsample.norm")
        reduction = f"swin.encoder.layers.{s}.downsample.reduction"
        yield from affine(f"stages.{s}.merging.reduction", reduction, TRANSPOSED)
    yield from affine("norm", "swin.layernorm")
    yield from affine("head.output", "classifier", TRANSPOSED)
