"""Parameters and the flat segments that they live in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xpformer.array import Array, size
from xpformer.errors import CheckpointError, XpformerError
from xpformer.rng import host_generator

if TYPE_CHECKING:
    from xpformer.backend import Backend

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""Draws the initial values on the host: ``(generator, shape) -> array``."""

Shape = tuple[int, ...]


class Parameter:
    """A trainable array.  It has a shape from the start and data once its model was placed on a backend.

    Args:
        shape: its shape.
        init: draws the initial values.
        decay: whether weight decay applies (matrices: yes; biases, norms, tokens and positions: no).
        trainable: whether it gets a gradient.
        lr_scale: factor on the learning rate.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        init: Initializer,
        *,
        decay: bool = False,
        trainable: bool = True,
        lr_scale: float = 1.0,
    ) -> None:
        self.shape = tuple(shape)
        self.init = init
        self.decay = decay
        self.trainable = trainable
        self.lr_scale = lr_scale
        self.name = ""
        self._data: Any = None

    @property
    def data(self) -> Any:
        """The device array: a view into its segment."""
        if self._data is None:
            raise XpformerError(f"parameter {self.name or self.shape} has no data yet; call model.to('numpy') first")
        return self._data

    @property
    def size(self) -> int:
        """The number of elements."""
        return size(self.shape)

    def __repr__(self) -> str:
        return f"<Parameter {self.name} {self.shape}>"


class Constant:
    """A fixed array that a layer uses (sin-cos positions): neither trained, nor counted, nor saved.

    ``values()`` computes it on the host.
    """

    def __init__(self, shape: tuple[int, ...], values: Callable[[], np.ndarray]) -> None:
        self.shape = tuple(shape)
        self.values = values
        self.name = ""
        self._data: Any = None

    @property
    def data(self) -> Any:
        """The device array."""
        if self._data is None:
            raise XpformerError(f"constant {self.name or self.shape} has no data yet; call model.to('numpy') first")
        return self._data


class SegmentKey(NamedTuple):
    """What the parameters of one segment share."""

    decay: bool
    trainable: bool
    lr_scale: float


class Slot(NamedTuple):
    """Where a parameter lies: segment, first element, one past the last."""

    segment: int
    start: int
    stop: int


class Segment:
    """One contiguous array that holds the parameters of one kind, each a view."""

    def __init__(self, key: SegmentKey, parameters: Sequence[Parameter], data: Any) -> None:
        self.key = key
        self.parameters = tuple(parameters)
        self.data = data


class ParameterStore:
    """All parameters of a model in flat segments by (weight decay, trainable, learning-rate scale).

    The optimizer's update, the global norm and a checkpoint's hash are one call a segment.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        backend: Backend,
        dtype: str,
        values: Callable[[str], np.ndarray],
    ) -> None:
        self.backend = backend
        self.dtype = dtype
        self.parameters = dict(parameters)
        self.segments: list[Segment] = []
        self.slots: dict[str, Slot] = {}
        groups: dict[SegmentKey, list[Parameter]] = {}
        for parameter in parameters.values():
            key = SegmentKey(parameter.decay, parameter.trainable, parameter.lr_scale)
            groups.setdefault(key, []).append(parameter)
        for key, members in groups.items():
            start = 0
            for p in members:
                self.slots[p.name] = Slot(len(self.segments), start, start + p.size)
                start += p.size
            self.segments.append(Segment(key, members, backend.adopt(self._flat(members, values), dtype)))
        self.bind()

    def _flat(self, members: Sequence[Parameter], values: Callable[[str], np.ndarray]) -> Any:
        """One host array, filled parameter by parameter, so that the values need not be there all at once."""
        flat = np.empty(sum(p.size for p in members), self.dtype)
        for p in members:
            slot = self.slots[p.name]
            flat[slot.start : slot.stop] = np.reshape(values(p.name), (p.size,))
        return flat

    def bind(self) -> None:
        """Point every parameter at its part of its segment."""
        for name, parameter in self.parameters.items():
            parameter._data = self.view(self.segments[self.slots[name].segment].data, parameter)

    def view(self, flat: Array, parameter: Parameter) -> Any:
        """The part of a segment-shaped array that belongs to ``parameter``, in its shape."""
        slot = self.slots[parameter.name]
        return self.backend.xp.reshape(flat[slot.start : slot.stop], parameter.shape)

    def write(self, segment: int, data: Any) -> None:
        """Make ``data`` the values of a segment."""
        held = self.segments[segment]
        if data is held.data:
            return
        if self.backend.mutable:
            held.data[...] = data
        else:
            held.data = data
            self.bind()

    def to_host(self, flats: Sequence[Array] | None = None) -> dict[str, np.ndarray]:
        """Name to host array, of the parameters or of arrays laid out like them (moments, averages)."""
        hosts = [self.backend.to_numpy(f) for f in (flats or [s.data for s in self.segments])]
        return {
            name: hosts[slot.segment][slot.start : slot.stop].reshape(self.parameters[name].shape)
            for name, slot in self.slots.items()
        }

    def flatten(self, values: Mapping[str, np.ndarray], what: str) -> list[np.ndarray]:
        """Host arrays by name as one flat host array a segment; names and shapes must fit exactly."""
        check_names(self.parameters, values, what)
        return [self._flat(s.parameters, values.__getitem__) for s in self.segments]

    def load(self, values: Mapping[str, np.ndarray], what: str = "weights") -> None:
        """Take the parameters from host arrays.

        Raises:
            CheckpointError: if a name is missing or unknown or a shape differs; nothing is changed then.
        """
        for i, flat in enumerate(self.flatten(values, what)):
            self.write(i, self.backend.asarray(flat, self.dtype))


def check_names(parameters: Mapping[str, Parameter], values: Mapping[str, np.ndarray], what: str) -> None:
    """Raise unless ``values`` has exactly the names and shapes of ``parameters``."""
    expected = {name: p.shape for name, p in parameters.items()}
    check_shapes(expected, {name: tuple(a.shape) for name, a in values.items()}, what)


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], what: str) -> None:
    """Raise :class:`CheckpointError` unless these are the same names with the same shapes."""
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unknown:
        parts = [
            f"{len(names)} {kind} ({', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''})"
            for kind, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise CheckpointError(f"{what} do not belong to this model: {', '.join(parts)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{what}: {name} has shape {found[name]}, the model {shape}")


def initial_values(parameters: Mapping[str, Parameter], seed: int) -> Callable[[str], np.ndarray]:
    """Each parameter's initial values by its name, a function of it and the seed alone."""
    return lambda name: parameters[name].init(host_generator(seed, "init", name), parameters[name].shape)


class Gradients:
    """The gradients of a model's parameters, in flat segments laid out like the parameters.

    ``reset()`` marks all slots empty: the first write assigns, later ones add, so a tied parameter gets the sum.
    """

    def __init__(self, store: ParameterStore) -> None:
        self.store = store
        self.backend = store.backend
        self.segments: list[Any] = [
            self.backend.zeros(s.data.shape, store.dtype) if s.key.trainable else None for s in store.segments
        ]
        self._views: dict[str, Any] = {}
        self._bind()
        self._empty = set(self._views)

    def _bind(self) -> None:
        for parameter in self._trainable():
            flat = self.segments[self.store.slots[parameter.name].segment]
            self._views[parameter.name] = self.store.view(flat, parameter)

    def _trainable(self) -> Iterator[Parameter]:
        return (p for p in self.store.parameters.values() if p.trainable)

    def reset(self) -> None:
        """Mark all slots empty (nothing is written)."""
        self._empty = set(self._views)

    def slot(self, parameter: Parameter) -> Any | None:
        """The slot to write a first gradient into, or ``None`` if there is one already or slots cannot be written."""
        if not self.backend.mutable or parameter.name not in self._empty:
            return None
        return self._views[parameter.name]

    def held(self, parameter: Parameter) -> Any | None:
        """The slot to add a later gradient to, or ``None`` if it is empty or slots cannot be written."""
        if not self.backend.mutable or parameter.name in self._empty:
            return None
        return self._views[parameter.name]

    def filled(self, parameter: Parameter) -> None:
        """Say that :meth:`slot` was written."""
        self._empty.discard(parameter.name)

    def add(self, parameter: Parameter, gradient: Array) -> None:
        """Assign the first gradient of a parameter, add the later ones."""
        name = parameter.name
        if not self.backend.mutable:
            self._views[name] = gradient if name in self._empty else self._views[name] + gradient
        elif name in self._empty:
            self._views[name][...] = gradient
        else:
            self._views[name] += gradient
        self._empty.discard(name)

    def finish(self) -> list[Any]:
        """The flat segments (``None`` for frozen ones), slots that got no gradient filled with zeros."""
        if not self.backend.mutable:
            xp = self.backend.xp
            for i, segment in enumerate(self.store.segments):
                if segment.key.trainable:
                    parts = [
                        xp.zeros((p.size,), dtype=segment.data.dtype, device=self.backend.device)
                        if p.name in self._empty
                        else xp.reshape(self._views[p.name], (p.size,))
                        for p in segment.parameters
                    ]
                    self.segments[i] = xp.concat(parts)
        else:
            for name in self._empty:
                self._views[name][...] = 0.0
        self._empty.clear()
        return self.segments

    def __getitem__(self, name: str) -> Any:
        """The gradient of the parameter of that name, in its shape."""
        return self._views[name]

    def to_host(self) -> dict[str, np.ndarray]:
        """Name to host array of every trainable parameter's gradient."""
        self.finish()
        return {p.name: self.backend.to_numpy(self._views[p.name]) for p in self._trainable()}
