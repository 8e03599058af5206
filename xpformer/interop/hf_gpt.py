"""Hugging Face's GPT-2, ``GPT2LMHeadModel``: its configuration, its names, and what it has not got.

Names are read with and without the prefix ``transformer.``, and written with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xpformer.errors import CheckpointError
from xpformer.interop.documents import MOST_BLOCKS, Keys, Read, converted
from xpformer.interop.hf_vit import ACTIVATIONS, CARRIED, OF_THE_FILE, THEIR_ACTIVATIONS
from xpformer.interop.layouts import TRANSPOSED, Entry, Stored, Table, affine, one
from xpformer.models.gpt import GPTConfig

MODEL_TYPE = "gpt2"
ARCHITECTURE, BODY = "GPT2LMHeadModel", "GPT2Model"
FRESH: tuple[str, ...] = ()
LEFT: tuple[str, ...] = ()
_HEAD, _TABLE = "lm_head.weight", "transformer.wte.weight"
_CARRIED = (
    *CARRIED,
    *("n_ctx", "id2label", "label2id", "num_labels", "summary_type", "summary_use_proj"),
    *(
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "reorder_and_upcast_attn",
        "decoder_start_token_id",
    ),
)  # of heads for other tasks, of half precision

_KEYS = {
    "vocabulary": "vocab_size",
    "context": "n_positions",
    "dim": "n_embd",
    "depth": "n_layer",
    "heads": "n_head",
    "dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "norm_eps": "layer_norm_epsilon",
}  # what errors call the options


def lacks(config: GPTConfig) -> list[str]:
    """The options of a model that the class cannot have."""
    wanted = {
        "norm": "layer_norm",
        "order": "pre",
        "mlp_first": False,
        "mlp": True,
        "residual": True,
        "positions": "learned",
        "bias": True,
    }
    found = [name for name, value in wanted.items() if getattr(config, name) != value]
    if config.depth < 1:
        found.append("depth")
    if config.kv_heads not in (0, config.heads):
        found.append("kv_heads")
    if config.activation not in THEIR_ACTIVATIONS:
        found.append("activation")
    if config.head == "double":
        found.append("head")
    return [f"{name} = {getattr(config, name)!r}" for name in found]


def keys(config: GPTConfig) -> dict[str, Any]:
    """The model's part of ``config.json``."""
    return {
        "vocab_size": config.vocabulary,
        "n_positions": config.context,
        "n_embd": config.dim,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.hidden or None,
        "activation_function": THEIR_ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout,
        "attn_pdrop": config.attention_dropout,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.head == "tied",
    }


def read_config(where: str, document: Mapping[str, Any]) -> Read:
    """The configuration; there are no classes.

    Raises:
        ConfigError: naming a key that cannot be, or that our model has no option for.
    """
    k = Keys(where, document)
    fields: dict[str, Any] = {
        "vocabulary": k.integer("vocab_size", 50257),
        "context": k.integer("n_positions", 1024),
        "dim": k.integer("n_embd", 768),
        "depth": k.integer("n_layer", 12, MOST_BLOCKS),
        "heads": k.integer("n_head", 12),
        "hidden": 0 if k.take("n_inner") is None else k.integer("n_inner", 1),
        "activation": k.choice("activation_function", "gelu_new", ACTIVATIONS),
        "dropout": k.number("resid_pdrop", 0.1),
        "embedding_dropout": k.number("embd_pdrop", 0.1),
        "attention_dropout": k.number("attn_pdrop", 0.1),
        "norm_eps": k.number("layer_norm_epsilon", 1e-5),
        "head": "tied" if k.boolean("tie_word_embeddings", True) else "free",
    }
    k.only("scale_attn_weights", True)
    k.only("scale_attn_by_inverse_layer_idx", False)
    k.only("add_cross_attention", False)
    k.only("pruned_heads", {})
    carried = {"bos_token_id": 50256, "eos_token_id": 50256} | k.passed_over(*_CARRIED)
    k.passed_over(*OF_THE_FILE)
    return Read(converted(where, GPTConfig, fields, _KEYS), (), carried | k.rest(), k.untaken())


def rename(name: str) -> str:
    """The name on disk of a tensor with or without its prefix."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def ignores(name: str) -> bool:
    """Whether a tensor is the causal mask of an old file, or a head that may be the embedding's table."""
    return name == _HEAD or bool(re.fullmatch(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", name))


def fitted(config: GPTConfig, stored: Stored) -> tuple[Stored, list[str]]:
    """As they are; a head that is tied may be stored too, but not with other numbers."""
    if config.head == "tied" and {_HEAD, _TABLE} <= stored.shapes.keys():
        head, table = stored.read(_HEAD), stored.read(_TABLE)
        if head.shape != table.shape or not np.array_equal(head, table):
            raise CheckpointError(
                f"{stored.where}: {stored.called(_HEAD)} is not {stored.called(_TABLE)}, though tie_word_embeddings "
                "is true; set it to false in config.json"
            )
    return stored, []


def table(config: GPTConfig) -> Table:
    """Where every parameter stands; GPT-2's maps are (inputs, outputs), as ours."""
    return dict(_entries(config))


def _entries(c: GPTConfig) -> Iterator[tuple[str, Entry]]:
    yield from one("embedding.weight", _TABLE)
    yield from one("positions.weight", "transformer.wpe.weight")
    for i in range(c.depth):
        block, theirs = f"blocks.{i}", f"transformer.h.{i}"
        yield from affine(f"{block}.norm1", f"{theirs}.ln_1")
        yield from affine(f"{block}.attention.qkv", f"{theirs}.attn.c_attn")
        yield from affine(f"{block}.attention.projection", f"{theirs}.attn.c_proj")
        yield from affine(f"{block}.norm2", f"{theirs}.ln_2")
        yield from affine(f"{block}.mlp.fc1", f"{theirs}.mlp.c_fc")
        yield from affine(f"{block}.mlp.fc2", f"{theirs}.mlp.c_proj")
    yield from affine("norm", "transformer.ln_f")
    yield from one("head.weight", _HEAD, TRANSPOSED)
