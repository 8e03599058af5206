"""How one of our arrays is stored elsewhere: under which names, and in which layout.

A :class:`Table` has an :class:`Entry` for each parameter of a model.  ``split`` makes of our array what others store,
``join`` the opposite; both only move numbers, so writing and reading back gives the same bits.

======= ============================ ==============================================
where   a linear map's weight        query, key, value
======= ============================ ==============================================
here    (inputs, outputs)            one map, columns q, k, v
torch   (outputs, inputs)            three maps, or one with rows q, k, v (timm)
GPT-2   (inputs, outputs)            one map, columns q, k, v
vit_jax (inputs, outputs)            three maps (D, heads, D / heads)
======= ============================ ==============================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from xpformer.errors import CheckpointError
from xpformer.parameters import check_shapes

HostArray = np.ndarray[Any, Any]
LONGEST_NAME = 512


class Layout(NamedTuple):
    """``join(split(a))`` is ``a``, to the bit."""

    split: Callable[[HostArray], Sequence[HostArray]]
    join: Callable[[Sequence[HostArray]], HostArray]


class Entry(NamedTuple):
    """Where a parameter of ours stands: one name, or one for each part."""

    names: tuple[str, ...]
    layout: Layout


Table = Mapping[str, Entry]
"""By our names."""


class Stored(Protocol):
    """Tensors in files: shapes are known before a number is read."""

    where: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def dtype(self) -> str:
        """``float64`` or ``float32``: of a model of these numbers."""

    def called(self, name: str) -> str:
        """What the file calls one, or would call one that is missing; for errors."""

    def read(self, name: str) -> HostArray:
        """The numbers of one."""


class InMemory:
    """Tensors that were read already."""

    def __init__(self, where: str, values: Mapping[str, HostArray]) -> None:
        self.where, self.values = where, values
        self.shapes = {name: a.shape for name, a in values.items()}

    @property
    def dtype(self) -> str:
        """Of the numbers."""
        return "float64" if any(a.dtype == np.float64 for a in self.values.values()) else "float32"

    def called(self, name: str) -> str:
        """By its name."""
        return name

    def read(self, name: str) -> HostArray:
        """The numbers of one."""
        return self.values[name]


class Changed:
    """Tensors some of which are read as others: ``changes`` has the shape that each gets, and what makes it so."""

    def __init__(
        self, stored: Stored, changes: Mapping[str, tuple[tuple[int, ...], Callable[[HostArray], HostArray]]]
    ) -> None:
        self.where, self.stored, self.changes = stored.where, stored, changes
        self.shapes = stored.shapes | {name: shape for name, (shape, _) in changes.items()}

    @property
    def dtype(self) -> str:
        """Of the numbers."""
        return self.stored.dtype

    def called(self, name: str) -> str:
        """As there."""
        return self.stored.called(name)

    def read(self, name: str) -> HostArray:
        """The numbers of one."""
        found = self.stored.read(name)
        return self.changes[name][1](found) if name in self.changes else found


SAME = Layout(lambda a: [a], lambda parts: parts[0])
TRANSPOSED = Layout(lambda a: [a.T], lambda parts: parts[0].T)
THREE = Layout(lambda a: np.split(a, 3), np.concatenate)
THREE_TRANSPOSED = Layout(
    lambda a: [part.T for part in np.split(a, 3, axis=1)],
    lambda parts: np.concatenate([part.T for part in parts], axis=1),
)
ROW = Layout(lambda a: [a[None]], lambda parts: parts[0][0])  # (T, D) as (1, T, D)
TOKEN = Layout(lambda a: [a[None, None]], lambda parts: parts[0][0, 0])  # (D,) as (1, 1, D)


def flat_kernel(channels: int, patch: int) -> Layout:
    """A linear map of flattened patches, (C P P, D), as the kernel of a convolution, (D, C, P, P)."""
    return Layout(
        lambda a: [a.T.reshape(-1, channels, patch, patch)],
        lambda parts: parts[0].reshape(len(parts[0]), -1).T,
    )


def one(ours: str, theirs: str, layout: Layout = SAME) -> Iterator[tuple[str, Entry]]:
    """A parameter that is one tensor there."""
    yield ours, Entry((theirs,), layout)


def affine(ours: str, theirs: str, layout: Layout = SAME) -> Iterator[tuple[str, Entry]]:
    """Weight and bias; ``layout`` is the weight's."""
    yield from one(f"{ours}.weight", f"{theirs}.weight", layout)
    yield from one(f"{ours}.bias", f"{theirs}.bias")


def check_name(where: str, name: str) -> None:
    """Raise :class:`CheckpointError` for a tensor's name that could not stand in a line of text."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise CheckpointError(
            f"{where}: a tensor is called {name[:40]!r}, expected 1 to {LONGEST_NAME} printable characters"
        )


def called(names: Mapping[str, str], name: str) -> str:
    """What a file would call a tensor that it lacks, where ``names`` has the names in it: as it calls its like."""
    for known, stored in names.items():  # the same of another block
        old, new = re.findall(r"\d+", known), re.findall(r"\d+", name)
        if re.sub(r"\d+", "", known) == re.sub(r"\d+", "", name):
            a, b = next(pair for pair in zip(old, new, strict=True) if pair[0] != pair[1])
            return re.sub(rf"(?<!\d){a}(?!\d)", b, stored, count=1)
    for known, stored in names.items():  # a prefix more or less
        if known != stored and stored.endswith(known):
            return stored.removesuffix(known) + name
        if known != stored and known.endswith(stored) and name.startswith(known.removesuffix(stored)):
            return name.removeprefix(known.removesuffix(stored))
    return name


def identity(names: Iterable[str]) -> Table:
    """Each under its own name, as it is."""
    return {name: Entry((name,), SAME) for name in names}


def store(table: Table, values: Mapping[str, HostArray]) -> dict[str, HostArray]:
    """Our arrays by their names, in their layout."""
    return {
        name: part
        for ours, value in values.items()
        for name, part in zip(table[ours].names, table[ours].layout.split(value), strict=True)
    }


def fetch(
    table: Table,
    parameters: Mapping[str, tuple[int, ...]],
    stored: Stored,
    *,
    fresh: Collection[str] = (),
    ignored: Collection[str] = (),
) -> dict[str, HostArray]:
    """Their tensors as our arrays.

    Args:
        table: of the model.
        parameters: the shape of each parameter of ours.
        stored: the files.
        fresh: parameters of ours that may be missing there, and then are here too.
        ignored: tensors of theirs that need no place.

    Raises:
        CheckpointError: naming what is missing, unknown or of another shape, before a number is read.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for ours, shape in parameters.items():
        try:
            parts = table[ours].layout.split(np.broadcast_to(np.float32(0), shape))
        except (ValueError, OverflowError) as error:  # more bytes than there are addresses
            name = stored.called(table[ours].names[0])
            raise CheckpointError(f"{stored.where}: {name} would have the shape {shape}, which cannot be") from error
        wanted |= {name: part.shape for name, part in zip(table[ours].names, parts, strict=True)}
    absent = {n for ours in fresh for n in table[ours].names} - stored.shapes.keys()
    left_out = set(ignored) - wanted.keys()
    check_shapes(
        {stored.called(name): shape for name, shape in wanted.items() if name not in absent},
        {stored.called(name): shape for name, shape in stored.shapes.items() if name not in left_out},
        stored.where,
    )
    return {
        ours: table[ours].layout.join([stored.read(name) for name in table[ours].names])
        for ours in parameters
        if not absent & {*table[ours].names}
    }
