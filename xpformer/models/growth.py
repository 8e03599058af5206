"""Progressive growth: a deeper GPT from a shallower one that was trained.

The reference trains one block, adds another, trains on, up to five, for want of memory.  By default the new blocks do
nothing at first (Chen, Goodfellow and Shlens 2016, "Net2Net", arXiv:1511.05641): the last map of each of their branches
is zero, a pre-norm block then adds zero, and the deeper model starts at the loss of the shallower one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xpformer.errors import ConfigError, suggest
from xpformer.models.gpt import GPT, GPTConfig

WAYS = ("identity", "copy", "fresh")


def grow(model: GPT, depth: int, *, new: str = "identity") -> GPT:
    """A model of ``depth`` blocks on the same backend that starts from the blocks of ``model``.

    Args:
        model: on a backend.
        depth: more blocks than it has.
        new: how the added blocks start.  ``identity``: they change nothing; ``copy``: as the last block that was
            trained (Gong et al. 2019, "Efficient training of BERT by progressively stacking"); ``fresh``: with initial
            values, as the reference does it.

    Raises:
        ConfigError: if the depth is not larger, the way is unknown, or post-norm blocks shall change nothing.
    """
    config = dataclasses.replace(model.config, depth=depth)
    grown = GPT(config, seed=model.seed).to(model.backend, model.dtype)
    grown.load_state(grow_state(model.state(), model.config, grown.state(), config, new=new))
    return grown


def grow_state(
    trained: Mapping[str, Any], config: GPTConfig, initial: Mapping[str, Any], deeper: GPTConfig, *, new: str
) -> dict[str, Any]:
    """The weights of :func:`grow`, by name, on the host: of a checkpoint's weights, say.

    Args:
        trained: the weights of the shallower model; ``config``: its shape.
        config: of the shallower model.
        initial: initial weights of the deeper model; ``deeper``: its shape.
        deeper: of the deeper model.
        new: as for :func:`grow`.
    """
    if new not in WAYS:
        raise ConfigError(f"unknown way to grow {new!r}; {suggest(new, WAYS)}")
    if deeper.depth <= config.depth:
        raise ConfigError(f"depth = {deeper.depth} does not grow a model of {config.depth} blocks; give more")
    if dataclasses.replace(deeper, depth=config.depth) != config:
        raise ConfigError("growth changes depth alone; the other options must be those of the trained model")
    if new == "identity" and config.order == "post":
        raise ConfigError("a post-norm block normalizes whatever it adds and cannot start as identity; use new='copy'")
    grown = {**initial, **trained}
    for name in grown.keys() - trained.keys():  # blocks.5.attention.projection.weight
        _, _, rest = name.split(".", 2)
        if new == "copy":
            grown[name] = trained[f"blocks.{config.depth - 1}.{rest}"]
        elif new == "identity" and rest.startswith(("attention.projection.", "mlp.fc2.")):
            grown[name] = initial[name] * 0.0
    return grown
