"""Fine-tuning: what of a trained model goes on learning, how fast, and how it becomes a model for other data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from xpformer.array import HostArray
from xpformer.errors import ConfigError, suggest
from xpformer.initializers import resize_distances, resize_positions
from xpformer.layers import FusedLoRA, Layer, Linear, LoRA, MultiHeadAttention
from xpformer.models.gpt import GPTConfig
from xpformer.models.swin import SwinConfig
from xpformer.models.vit import ViT, ViTConfig

HEAD = "head.*"
"""The parameters that a new number of classes makes new."""
_SHAPES = {
    ViTConfig: ("classes", "image_size", "dropout", "hidden_dropout", "attention_dropout", "drop_path"),
    SwinConfig: ("classes", "image_size", "window", "dropout", "attention_dropout", "drop_path", "drop_path_on"),
    GPTConfig: ("context", "dropout", "embedding_dropout", "attention_dropout"),
}


@dataclass(frozen=True)
class Tuning:
    """What learns, and how fast.

    Patterns are those of file names: ``*`` stands for any characters, dots too.  One names parameters or layers with
    all that is in them: ``blocks.0``, ``blocks.*.norm?``, ``*.bias``.

    Raises:
        ConfigError: naming the option, what it is and what it may be.
    """

    freeze: tuple[str, ...] = ()
    """Patterns of parameters that stay as they are; a later ``!head`` lets what it names learn all the same."""
    lr_decay: float = 1.0
    """The learning rate of the embeddings is multiplied by lr_decay^(depth + 1), of block i by lr_decay^(depth - i), as
    of the merging behind it; of the final norm and the head it is whole (Clark et al. 2020, ELECTRA; Bao et al. 2022,
    BEiT)."""
    lora: tuple[str, ...] = ()
    """Patterns of affine layers that learn a low-rank difference (:class:`~xpformer.layers.LoRA`), while all else but a
    new head is frozen; ``freeze`` can let more learn: ``!*.norm?``.  Of a fused projection ``*.q``, ``*.k`` and ``*.v``
    name its parts, which learn one each (:class:`~xpformer.layers.FusedLoRA`); ``*.qkv`` is one for the three."""
    rank: int = 8
    """Of the difference."""
    alpha: float = 16.0
    """The difference counts alpha / rank."""

    def __post_init__(self) -> None:
        if not 0.0 < self.lr_decay <= 1.0:
            raise ConfigError(f"lr_decay = {self.lr_decay} is outside 0 < lr_decay <= 1")
        if self.rank < 1:
            raise ConfigError(f"rank = {self.rank} is less than 1")
        if not self.alpha > 0.0:
            raise ConfigError(f"alpha = {self.alpha} is not positive")
        for name, default in (("rank", Tuning.rank), ("alpha", Tuning.alpha)):
            if getattr(self, name) != default and not self.lora:
                raise ConfigError(f"{name} = {getattr(self, name)} is of a LoRA, and lora is empty; name its layers")


def tune(model: Layer, how: Tuning, *, new: Sequence[str] = ()) -> None:
    """Make ``model`` learn as ``how`` says; one that has data keeps it.

    Args:
        model: a ViT, a Swin or a GPT.
        how: what learns.
        new: patterns of parameters that LoRA leaves trainable, of a new head.

    Raises:
        ConfigError: if a pattern matches nothing, a rank does not fit, or nothing is left to learn.
    """
    adapted = _adapt(model, how)
    parameters = model.named_parameters()
    patterns = (*(["*"] if adapted else []), *(f"!{p}" for p in new if adapted), *how.freeze)
    frozen: set[str] = set()
    for pattern in patterns:
        found = set(_matching("freeze", [pattern.removeprefix("!")], parameters))
        frozen = frozen - found if pattern.startswith("!") else frozen | found
    frozen -= {name for name in frozen if name.startswith(adapted) and name.endswith((".lora_a", ".lora_b"))}
    if frozen == parameters.keys():
        raise ConfigError(f"freeze = {list(how.freeze)} leaves nothing to learn; let some of it: '!{HEAD}'")
    depths = [len(stage.blocks) for stage in getattr(model, "stages", [model]) if hasattr(stage, "blocks")]
    for name, parameter in parameters.items():
        parameter.trainable = name not in frozen
        parameter.lr_scale = how.lr_decay ** (sum(depths) + 1 - _height(name, depths))
    if model._store is not None:
        model.to(model.backend, model.dtype)


def _adapt(model: Layer, how: Tuning) -> tuple[str, ...]:
    """Put a LoRA in the place of each affine layer that is named, or of which parts are; returns their paths."""
    layers = dict(model.named_layers())
    fused = {f"{path}.qkv": layer.widths for path, layer in layers.items() if isinstance(layer, MultiHeadAttention)}
    affine = {p: a for p, a in layers.items() if isinstance(a, Linear) and not isinstance(a, (LoRA, FusedLoRA))}
    names = {name: path for path in affine for name in (path, *(f"{path}.{part}" for part in fused.get(path, ())))}
    found = _matching("lora", how.lora, names)
    adapted = []
    for path, layer in affine.items():
        chosen = [part for part in fused.get(path, ()) if f"{path}.{part}" in found]
        if path not in found and not chosen:
            continue
        above, _, name = path.rpartition(".")
        try:
            low = (
                LoRA(layer, how.rank, how.alpha)
                if path in found  # then the pattern means all that is in it
                else FusedLoRA(layer, fused[path], chosen, how.rank, how.alpha)
            )
        except ConfigError as error:
            raise ConfigError(f"lora: {path}: {error}") from error
        setattr(layers[above], name, low)
        adapted.append(path)
    return tuple(f"{path}." for path in adapted)


def _matching(option: str, patterns: Sequence[str], names: Mapping[str, object]) -> list[str]:
    """The names, in their order, that a pattern matches; each has to match one."""
    found: set[str] = set()
    for pattern in patterns:
        matched = {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        if not matched:
            what = "affine layer" if option == "lora" else "parameter"
            known = {re.sub(r"\b(stages|blocks)\.\d+", r"\1.*", re.sub(r"\.(weight|bias)$", "", n)) for n in names}
            raise ConfigError(f"{option}: {pattern!r} matches no {what}; {suggest(pattern, known)}")
        found |= matched
    return [name for name in names if name in found]


def _height(name: str, depths: Sequence[int]) -> int:
    """0 for embeddings, i + 1 for block i of all, the same for what merges its tokens, one more for what is behind."""
    first, *rest = name.split(".")
    if first == "blocks":
        return int(rest[0]) + 1
    if first == "stages":
        stage, *block = int(rest[0]), *rest[2:3]
        return sum(depths[:stage]) + int(block[0]) + 1 if rest[1] == "blocks" else sum(depths[: stage + 1])
    return sum(depths) + 1 if first in ("norm", "head", "head_hidden") else 0


def merged_state(model: Layer) -> dict[str, HostArray]:
    """Name to host array of every parameter of the model without LoRA that does the same."""
    state = model.state()
    for path, layer in model.named_layers():
        if isinstance(layer, (LoRA, FusedLoRA)):
            layer.merge(path, state)
    return state


# ---- another shape --------------------------------------------------------------------------------------------------


def check_change(old: Any, new: Any) -> None:
    """Raise :class:`ConfigError` unless weights of the shape ``old`` can become those of ``new``."""
    may = _SHAPES[type(old)]
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name not in may:
            raise ConfigError(
                f"model.{field.name} = {after!r}: the weights are for {before!r}; what may change is {', '.join(may)}"
            )


def carry_over(
    trained: Mapping[str, HostArray], old: Any, initial: Mapping[str, HostArray], new: Any, *, new_head: bool = False
) -> tuple[dict[str, HostArray], list[str]]:
    """Weights of the shape ``new`` that start from trained ones of the shape ``old``, and one line on each change.

    Args:
        trained: by name.
        old: their :class:`ViTConfig`, :class:`SwinConfig` or :class:`GPTConfig`.
        initial: weights of the new shape, for a head with other classes.
        new: as ``old``; classes, image size, window, context and dropouts may differ.
        new_head: also where there are as many classes as before.

    Raises:
        ConfigError: if the two differ in something else.
    """
    check_change(old, new)
    found, said = {name: trained.get(name, value) for name, value in initial.items()}, []
    if isinstance(new, GPTConfig):
        if new.context > old.context:
            raise ConfigError(f"model.context = {new.context}: the weights are for at most {old.context}; take less")
        if new.context < old.context:
            said.append(f"context {new.context} of {old.context}: the later positions are left out")
            found = {n: a[: new.context] if n == "positions.weight" else a for n, a in found.items()}
        return found, said
    pool = getattr(new, "pool", "mean")
    grids = [config.grids[0] if isinstance(config, SwinConfig) else ViT(config).grid for config in (old, new)]
    if grids[0] != grids[1] and pool == "flatten":
        raise ConfigError(f"model.image_size = {new.image_size}: a head on all tokens needs the old {old.image_size}")
    if grids[0] != grids[1] and new.positions == "learned":
        said.append("positions interpolated from {} x {} to {} x {} patches".format(*grids[0], *grids[1]))
        table = resize_positions(trained["positions.weight"], *grids, token=pool == "token")
        found["positions.weight"] = table
    for stage in range(len(getattr(new, "depths", ()))):
        before, after = (config.windows(stage, 0).window[0] for config in (old, new))
        if before != after:
            said.append(f"stage {stage}: tables for windows of {before} made such for windows of {after}")
            tables = [n for n in found if n.startswith(f"stages.{stage}.") and n.endswith(".attention.table")]
            found |= {name: resize_distances(found[name], before, after) for name in tables}
    if new_head or new.classes != old.classes:
        replaced = f" in place of the old one of {old.classes}" if "head.output.weight" in trained else ""
        said.append(f"a new head of {new.classes} classes{replaced}")
        found |= {name: value for name, value in initial.items() if fnmatchcase(name, HEAD)}
    return found, said
