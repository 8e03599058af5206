"""A case: the arguments of one operation or kernel, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xpformer.array import HostArray
from xpformer.rng import MaskKey, host_generator

Generator = np.random.Generator


class Arguments(NamedTuple):
    """What an operation or kernel is called with: float64, integer or boolean host arrays (or ``None``), options."""

    arrays: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """Named arguments of one operation or kernel."""

    name: str
    make: Callable[[Generator], Arguments]
    shape_only: bool = False
    """Whether the case is there for its shape and exempt from the gradient check."""

    def draw(self, seed: int = 0) -> Arguments:
        """The arguments, the same for the same seed."""
        return self.make(host_generator(seed, "case", self.name))


def case(name: str, *arrays: Any, shape_only: bool = False, **options: Any) -> Case:
    """A case whose arrays are given as shapes (normal numbers), as functions of a generator, or as they are."""

    def make(generator: Generator) -> Arguments:
        return Arguments(tuple(_array(generator, a) for a in arrays), options)

    return Case(name, make, shape_only)


def shape_case(name: str, *arrays: Any, **options: Any) -> Case:
    """A case that is there for its shape."""
    return case(name, *arrays, shape_only=True, **options)


def _array(generator: Generator, given: Any) -> Any:
    if isinstance(given, tuple):
        return np.asarray(generator.standard_normal(given))
    return given(generator) if callable(given) else given


def away_from_zero(*shape: int) -> Callable[[Generator], HostArray]:
    """Normal numbers, none nearer to zero than 0.1."""

    def make(generator: Generator) -> HostArray:
        x = generator.standard_normal(shape)
        return np.asarray(x + np.copysign(0.1, x))

    return make


def wide(*shape: int, scale: float = 3.0) -> Callable[[Generator], HostArray]:
    """Normal numbers of this standard deviation."""
    return lambda generator: scale * generator.standard_normal(shape)


def uniform(*shape: int) -> Callable[[Generator], HostArray]:
    """Numbers in [0, 1)."""
    return lambda generator: generator.uniform(size=shape)


def shares(*shape: int) -> Callable[[Generator], HostArray]:
    """Positive rows that sum to one."""
    return lambda generator: np.asarray(generator.dirichlet(np.ones(shape[-1]), shape[:-1]))


def integers(
    high: int, *shape: int, dtype: str = "int64", holes: int | None = None
) -> Callable[[Generator], HostArray]:
    """Integers in [0, high), about a third of them replaced by ``holes`` if that is given."""

    def make(generator: Generator) -> HostArray:
        x = generator.integers(0, high, shape)
        if holes is not None:
            x = np.where(generator.permutation(x.size).reshape(shape) % 3 == 0, holes, x)
        return x.astype(dtype)

    return make


def allowed(*shape: int, empty_row: bool = False) -> Callable[[Generator], HostArray]:
    """A boolean mask with at least one key a row, or with one query row (..., T, S) that sees no key."""

    def make(generator: Generator) -> HostArray:
        mask = generator.uniform(size=shape) < 0.6
        mask[..., 0] = True
        if empty_row:
            mask[..., 1, :] = False
        return mask

    return make


def additive(
    *shape: int, masked: bool = False, empty_row: bool = False, hidden: float = -np.inf
) -> Callable[[Generator], HostArray]:
    """Numbers to add to the scores; if ``masked``, or another number is to hide, some are ``hidden``."""

    def make(generator: Generator) -> HostArray:
        scores = generator.standard_normal(shape)
        keep = allowed(*shape, empty_row=empty_row)(generator)
        return np.asarray(np.where(keep, scores, hidden) if masked or hidden > -np.inf else scores)

    return make


KEY = MaskKey(0x9E3779B9, 0x7F4A7C15)
LATE_KEY = MaskKey(0x12345678, 0xFEDCBA98, first_sample=2**31)
