"""Hugging Face's ViT, ``ViTForImageClassification``: its configuration, its names, and what it has not got.

Read are the names on disk, those that transformers 5 uses in memory, and those of ``ViTModel``, which has neither the
prefix ``vit.`` nor a classifier; written are the names on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from xpformer.interop.documents import MOST_BLOCKS, Keys, Read, are_names, converted
from xpformer.interop.layouts import (
    ROW,
    SAME,
    THREE,
    THREE_TRANSPOSED,
    TOKEN,
    TRANSPOSED,
    Entry,
    Layout,
    Stored,
    Table,
    affine,
    flat_kernel,
    one,
)
from xpformer.models.vit import ViTConfig

MODEL_TYPE = "vit"
ARCHITECTURE, BODY = "ViTForImageClassification", "ViTModel"
FRESH: tuple[str, ...] = ("head.output.weight", "head.output.bias")
"""May be missing: a published backbone has no classifier."""
LEFT: tuple[str, ...] = ("vit.pooler.", "vit.embeddings.mask_token")
"""Learned, and of no use in classification."""
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "tanh": "tanh"}
OF_THE_FILE = (
    *("architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "label2id", "xpformer"),
    *("_name_or_path", "name_or_path", "_commit_hash", "_attn_implementation", "_attn_implementation_autoset"),
)
"""Keys of any configuration that say where a file comes from, or that follow from the others: not written again."""
CARRIED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "initializer_range"),
    *(
        "problem_type",
        "task_specific_params",
        "finetuning_task",
        "tokenizer_class",
        "prefix",
        "use_cache",
        "is_decoder",
    ),
    *("is_encoder_decoder", "return_dict_in_generate", "attn_implementation", "return_dict", "output_hidden_states"),
    *("output_attentions", "torchscript", "use_bfloat16", "gradient_checkpointing", "chunk_size_feed_forward"),
)
"""Keys of any configuration that say something, but not what a model computes."""
_CARRIED = (*CARRIED, "encoder_stride", "pooler_output_size", "pooler_act")  # of masked images, of a pooler

_KEYS = {
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_ratio": "intermediate_size / hidden_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "norm_eps": "layer_norm_eps",
    "channels": "num_channels",
}  # what errors call the options
_NEW_NAMES = (
    (r"^(?!vit\.|classifier\.)", "vit."),  # those of ViTModel
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def lacks(config: ViTConfig) -> list[str]:
    """The options of a model that the class cannot have."""
    wanted = {
        "patch_norm": False,
        "positions": "learned",
        "pool": "token",
        "attention_projection": True,
        "head_hidden": 0,
    }
    found = [name for name, value in wanted.items() if getattr(config, name) != value]
    if config.embedding == "stem":
        found.append("embedding")
    if config.embedding == "conv" and config.patch_stride not in (0, config.patch_size):
        found.append("patch_stride")
    if len(set(config.heads_per_block)) > 1:
        found.append("heads")
    return [f"{name} = {getattr(config, name)!r}" for name in found]


def keys(config: ViTConfig) -> dict[str, Any]:
    """The model's part of ``config.json``."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads_per_block[0],
        "intermediate_size": round(config.dim * config.mlp_ratio),
        "hidden_act": THEIR_ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
    }


def read_config(where: str, document: Mapping[str, Any]) -> Read:
    """The configuration and the names of the classes.

    Raises:
        ConfigError: naming a key that cannot be, or that our model has no option for.
    """
    k = Keys(where, document)
    dim = k.integer("hidden_size", 768)
    names = class_names(k)
    fields: dict[str, Any] = {
        "dim": dim,
        "depth": k.integer("num_hidden_layers", 12, MOST_BLOCKS),
        "heads": k.integer("num_attention_heads", 12),
        "mlp_ratio": k.integer("intermediate_size", 3072) / dim,
        "activation": k.choice("hidden_act", "gelu", ACTIVATIONS),
        "dropout": k.number("hidden_dropout_prob", 0.0),
        "hidden_dropout": 0.0,
        "attention_dropout": k.number("attention_probs_dropout_prob", 0.0),
        "norm_eps": k.number("layer_norm_eps", 1e-12),
        "image_size": k.square("image_size", 224),
        "patch_size": k.square("patch_size", 16),
        "channels": k.integer("num_channels", 3),
        "qkv_bias": k.boolean("qkv_bias", True),
        "classes": len(names),
        "embedding": "conv",
    }
    k.only("pruned_heads", {})
    k.only("add_cross_attention", False)
    carried = k.passed_over(*_CARRIED)
    k.passed_over(*OF_THE_FILE)
    return Read(converted(where, ViTConfig, fields, _KEYS), names, carried | k.rest(), k.untaken())


def class_names(k: Keys) -> tuple[str, ...]:
    """Of ``id2label``, in the order of their numbers; transformers' two nameless classes where there are none."""
    count = k.take("num_labels", 2)
    labels = k.take("id2label")
    if labels is None:
        if type(count) is not int or not 1 <= count <= 1_000_000:
            raise k.wrong("num_labels", "a whole number above 0")
        return tuple(f"LABEL_{i}" for i in range(count))
    names = [labels.get(str(i)) for i in range(len(labels))] if isinstance(labels, dict) else []
    if not names or not are_names(names):
        raise k.wrong("id2label", 'an object {"0": name, "1": name, ...} of printable names')
    return tuple(map(str, names))


def labels(names: tuple[str, ...]) -> dict[str, Any]:
    """``id2label`` and its inverse; of equal names the inverse has the last."""
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def rename(name: str) -> str:
    """The name on disk of a tensor by any of its names."""
    for pattern, replacement in _NEW_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def ignores(name: str) -> bool:
    """Whether a tensor takes no part in classification."""
    return name.startswith(LEFT) or name == "vit.embeddings.position_ids"


def fitted(config: ViTConfig, stored: Stored) -> tuple[Stored, list[str]]:
    """As they are."""
    return stored, []


def table(config: ViTConfig) -> Table:
    """Where every parameter stands."""
    return dict(_entries(config))


def _entries(c: ViTConfig) -> Iterator[tuple[str, Entry]]:
    yield from one("token.weight", "vit.embeddings.cls_token", TOKEN)
    yield from one("positions.weight", "vit.embeddings.position_embeddings", ROW)
    ours, layout = patch_embedding(c)
    yield from affine(ours, "vit.embeddings.patch_embeddings.projection", layout)
    for i in range(c.depth):
        block, theirs = f"blocks.{i}", f"vit.encoder.layer.{i}"
        yield from affine(f"{block}.norm1", f"{theirs}.layernorm_before")
        qkv = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        yield f"{block}.attention.qkv.weight", Entry(tuple(f"{n}.weight" for n in qkv), THREE_TRANSPOSED)
        yield f"{block}.attention.qkv.bias", Entry(tuple(f"{n}.bias" for n in qkv), THREE)
        yield from affine(f"{block}.attention.projection", f"{theirs}.attention.output.dense", TRANSPOSED)
        yield from affine(f"{block}.norm2", f"{theirs}.layernorm_after")
        yield from affine(f"{block}.mlp.fc1", f"{theirs}.intermediate.dense", TRANSPOSED)
        yield from affine(f"{block}.mlp.fc2", f"{theirs}.output.dense", TRANSPOSED)
    yield from affine("norm", "vit.layernorm")
    yield from affine("head.output", "classifier", TRANSPOSED)


def patch_embedding(config: ViTConfig) -> tuple[str, Layout]:
    """Our name of the map of patches, and its layout where others have the kernel of a convolution."""
    if config.embedding == "conv":
        return "embedding.convolutions.0", SAME
    return "embedding.projection", flat_kernel(config.channels, config.patch_size)
