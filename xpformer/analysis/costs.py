"""What the operations of a pass cost, counted as they run: FLOPs of matrix products, and bytes.

- **FLOPs** are two for each multiply-add of a matrix product; elementwise work is not counted.  The backward counts
  only the gradients that were taken: a frozen weight, or an image without a gradient, costs nothing.
- **Bytes moved** are those an operation cannot do without: its forward reads its arguments and writes its output and
  what it keeps besides; its backward reads ``dy`` and what was kept and writes the gradients.  Each array counts once,
  a view with the part it shows; an operation that only gives views of what it was given moves nothing.  What a pair
  writes and reads again in between is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from xpformer.functional._op import Flops, Op, Pair
from xpformer.layers import Layer, Observer
from xpformer.memory import arrays_in, buffer, shown_bytes


class Place(NamedTuple):
    """An operation in a model, and the pair that ran it."""

    path: str
    """Of its layer; :data:`OUTSIDE` where it runs in none, as the loss does."""
    op: str
    pair: str


OUTSIDE = "(loss)"


@dataclass
class Count:
    """What the operations at one place cost, all calls together."""

    calls: int = 0
    forward: int = 0
    """FLOPs."""
    backward: int = 0
    """FLOPs."""
    forward_bytes: int = 0
    backward_bytes: int = 0


class Located(Observer):
    """An observer of one thread that knows whether a layer runs: the model and what is outside both have no path."""

    def __init__(self) -> None:
        self._running = 0
        self._undoing = 0

    def enter(self, layer: Layer, direction: str) -> None:
        """One layer deeper."""
        self._running += 1
        self._undoing += direction == "backward"

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        """One layer up."""
        self._running -= 1
        self._undoing -= direction == "backward"

    @property
    def again(self) -> bool:
        """Whether a forward that runs now is the second of a recomputed layer, and so a part of its backward."""
        return self._undoing > 0

    def place(self, path: str, op: Op, pair: Pair) -> Place:
        """Where an operation runs."""
        return Place(path if self._running else OUTSIDE, op.name, pair.name)


class Counts(Located):
    """Counts by place; the second forward of a recomputed layer counts as backward."""

    def __init__(self) -> None:
        super().__init__()
        self.by_place: dict[Place, Count] = {}
        self._pending: dict[Place, list[tuple[Flops, _Shown]]] = {}

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """Its FLOPs; those of its backward wait for it."""
        place, flops = self.place(path, op, pair), op.flops(*arrays, **options)
        self._pending.setdefault(place, []).append((flops, _shown(saved)))
        count, moved = self.by_place.setdefault(place, Count()), _moved(_shown(arrays), _shown((y, saved)))
        if self.again:
            count.backward += flops.forward
            count.backward_bytes += moved
            return
        count.calls += 1
        count.forward += flops.forward
        count.forward_bytes += moved

    def backward(self, path: str, op: Op, pair: Pair, dy: Any, gradients: Mapping[str, Any]) -> None:
        """Its FLOPs, by the gradients that were taken."""
        place = self.place(path, op, pair)
        flops, saved = self._pending[place].pop()
        taken = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        count = self.by_place[place]
        count.backward += sum(flops.backward.get(name, 0) for name in taken)
        count.backward_bytes += _moved(_shown(dy) | saved, _shown(taken))


_Shown = dict[int, tuple[int, int]]
"""Buffer and bytes of the elements of arrays, by identity: the arrays themselves would be kept alive."""


def _shown(arrays: Any) -> _Shown:
    return {id(x): (buffer(x)[0], shown_bytes(x)) for x in arrays_in(arrays)}


def _moved(given: _Shown, made: _Shown) -> int:
    """Bytes of the elements of all arrays, each once; nothing where what was made are views of what was given."""
    known = {owner for owner, _ in given.values()}
    written = sum(count for owner, count in made.values() if owner not in known)
    return written and written + sum(count for _, count in given.values())
