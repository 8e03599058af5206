"""An operation is a pair: a forward function and its vector-Jacobian product."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xpformer.array import Array
from xpformer.errors import ShapeError

Need = Collection[str] | None
"""The names of the arguments whose gradients are wanted; ``None`` wants all."""


def needs(need: Need, *names: str) -> bool:
    """Whether the gradient of any of these arguments is wanted."""
    return need is None or any(name in need for name in names)


class Flops(NamedTuple):
    """Floating-point operations of the matrix products: two for each multiply-add, nothing for elementwise work."""

    forward: int = 0
    backward: Mapping[str, int] = {}
    """By the argument whose gradient costs them."""


def no_products(*_arrays: Array | None, **_options: Any) -> Flops:
    """The count of an operation without matrix products."""
    return Flops()


def covers_all(*_arrays: Array | None, **_options: Any) -> bool:
    """A pair that takes whatever its operation takes."""
    return True


@dataclass(frozen=True)
class Pair:
    """A forward function and its vector-Jacobian product, with what they cover.

    ``forward(*arrays, **options) -> (y, saved)`` and ``backward(dy, saved, *, need=None) -> gradients``, one for each
    array argument in forward's order, ``None`` where the argument is absent, not floating-point, or not in ``need``.

    Neither writes an array it did not allocate: arguments, ``dy`` and ``saved`` are read-only.  An output may be a
    view of an input.  ``backward`` may be called more than once with the same ``saved``.
    """

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Array | None, ...]]
    name: str = "portable"
    covers: Callable[..., bool] = covers_all
    """Called as ``forward`` is; where it is false the portable pair runs."""
    into: frozenset[str] = frozenset()
    """Arguments whose gradient ``backward(..., into={name: slot})`` can write straight into a slot (then it returns
    that slot)."""
    onto: frozenset[str] = frozenset()
    """Arguments whose gradient ``backward(..., onto={name: slot})`` can add to what a slot holds (then it returns that
    slot)."""


@dataclass(frozen=True)
class Op:
    """A named operation: its portable pair, the names of its array arguments, and its cost.

    Args:
        name: the name in the registry, in pictures and in messages.
        forward: positional parameters are arrays (or ``None``), keyword-only parameters are options.
        backward: the exact vector-Jacobian product of ``forward``.
        flops: called as ``forward`` is; counts the matrix products.
    """

    name: str
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Array | None, ...]]
    flops: Callable[..., Flops] = no_products
    arguments: tuple[str, ...] = field(init=False)
    portable: Pair = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.forward).parameters.values()
        arrays = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        object.__setattr__(self, "arguments", arrays)
        object.__setattr__(self, "portable", Pair(self.forward, self.backward))

    def __call__(self, *arrays: Array | None, **options: Any) -> Any:
        """``y`` alone, by the portable forward."""
        return self.forward(*arrays, **options)[0]

    @property
    def derivation(self) -> str:
        """The docstring of the operation's module: the equations, their terms numbered as in the code."""
        return inspect.cleandoc(inspect.getmodule(self.forward).__doc__ or "")

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Kernel:
    """A function without a derivative that a backend may replace (an optimizer's update, a sum of squares)."""

    name: str
    portable: Callable[..., Any]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The portable function."""
        return self.portable(*args, **options)


def both(value: int | tuple[int, int]) -> tuple[int, int]:
    """What an option of images says of rows and columns; a number is both."""
    return (value, value) if isinstance(value, int) else value


def check_last_axis(op: str, name: str, x: Array, of: str, expected: int) -> None:
    """Raise if the last axis of ``x`` has another length than ``of`` says."""
    if x.ndim == 0 or x.shape[-1] != expected:
        raise ShapeError(f"{op}: {name} has shape {x.shape}, expected its last axis to be {expected}, {of}")


def check_shape(op: str, name: str, x: Array, expected: Sequence[int], of: str) -> None:
    """Raise if ``x`` has another shape than ``expected``, which is ``of`` something the message names."""
    if tuple(x.shape) != tuple(expected):
        raise ShapeError(f"{op}: {name} has shape {tuple(x.shape)}, expected {tuple(expected)}, {of}")
