"""The base of all layers: owns parameters and child layers, composes operations, keeps nothing between calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from xpformer.errors import XpformerError
from xpformer.layers import _recompute
from xpformer.layers._context import Context
from xpformer.parameters import Constant, Gradients, Parameter, ParameterStore, check_names, initial_values

if TYPE_CHECKING:
    from xpformer.array import Array, HostArray
    from xpformer.backend import Backend


def _scoped(method: Callable[..., Any], direction: str) -> Callable[..., Any]:
    """Tell the context which layer is running, and let it run again where the context wants that."""
    recompute = functools.partial(_recompute.forward if direction == "forward" else _recompute.backward, method)

    @functools.wraps(method)
    def scoped(self: Layer, x: Any, ctx: Context, *args: Any, **options: Any) -> Any:
        run = recompute if self.recomputed and ctx.recompute else method
        ctx.enter(self, direction)
        value = None
        try:
            value = run(self, x, ctx, *args, **options)
        finally:
            ctx.leave(self, direction, value)
        return value

    return scoped


class Layer:
    """A part of a model.

    A subclass creates :class:`Parameter`, :class:`Constant` and child layers as attributes (or lists of layers) in
    ``__init__`` and writes ``forward(x, ctx) -> y`` and ``backward(dy, ctx) -> dx``.  It keeps nothing of a pass on
    ``self``: what backward needs, forward leaves on ``ctx``'s tape.  So a layer can be used twice in a pass and from
    several threads.
    """

    path: str = ""
    recomputed: bool = False
    """Whether it keeps its input alone, and runs again in the backward, in a context that recomputes."""
    _store: ParameterStore | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("forward", "backward"):
            if name in cls.__dict__:
                setattr(cls, name, _scoped(cls.__dict__[name], name))

    def forward(self, x: Any, ctx: Context) -> Any:
        """``y`` of ``x``."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward(x, ctx)")

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx`` of ``dy``, the lines of ``forward`` upwards."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward(dy, ctx)")

    def __call__(self, x: Array, ctx: Context | None = None, **options: Any) -> Any:
        """Inference: ``forward``, with its options, in a context that keeps nothing."""
        forward: Callable[..., Any] = self.forward
        return forward(x, ctx or Context(self.backend), **options)

    # ---- the tree ---------------------------------------------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Layer]]:
        """Name and layer of each direct child, in the order of creation."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{i}", item

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Path and layer of this layer and all below it, parents first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_layers(f"{prefix}.{name}" if prefix else name)

    def _owned(self, kind: type[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        seen: set[int] = set()
        for path, layer in self.named_layers():
            for name, value in vars(layer).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    found[f"{path}.{name}" if path else name] = value
        return found

    def named_parameters(self) -> dict[str, Parameter]:
        """Path to parameter; a parameter that two layers share stands once, under its first path."""
        return self._owned(Parameter)

    def count_parameters(self, *, trainable: bool = False) -> int:
        """The number of parameters (only the trainable ones if asked)."""
        return sum(p.size for p in self.named_parameters().values() if p.trainable or not trainable)

    # ---- on a backend -----------------------------------------------------------------------------------------------

    def to(
        self,
        backend: Backend | str,
        dtype: str | None = None,
        *,
        seed: int | None = None,
        values: Mapping[str, HostArray] | None = None,
    ) -> Self:
        """Place the parameters on a backend, in flat segments.

        The first time they get their initial values, a function of ``seed`` and each parameter's name; later they are
        copied, and only parameters that are new get initial ones.

        Args:
            backend: a backend or its name, ``"numpy"``, ``"torch:cuda:0"``.
            dtype: ``"float32"`` or ``"float64"``; by default the dtype so far, or float32.
            seed: of the initial values; by default the model's own ``seed``, or 0.
            values: all parameters' values instead, by name.

        Raises:
            CheckpointError: if ``values`` has other names or shapes than the model.
        """
        from xpformer.backend import get_backend

        target = get_backend(backend) if isinstance(backend, str) else backend
        for path, layer in reversed([*self.named_layers()]):
            layer.path = path  # the first one where two layers share it, as for its parameters
        parameters = self.named_parameters()
        for name, parameter in parameters.items():
            parameter.name = name
        if values is not None:
            check_names(parameters, values, "values")
        held = values or ({} if self._store is None else self._store.to_host())
        fresh = initial_values(parameters, seed if seed is not None else getattr(self, "seed", 0))
        dtype = dtype or (self._store.dtype if self._store else "float32")

        def value(name: str) -> HostArray:
            return held[name] if name in held else fresh(name)

        self._store = ParameterStore(parameters, target, dtype, value)
        for name, constant in self._owned(Constant).items():
            constant.name = name
            constant._data = target.asarray(constant.values(), dtype)
        return self

    @property
    def store(self) -> ParameterStore:
        """The segments that the parameters live in."""
        if self._store is None:
            raise XpformerError(f"{type(self).__name__} is on no backend yet; call .to('numpy') first")
        return self._store

    @property
    def backend(self) -> Backend:
        """The backend that the parameters live on."""
        return self.store.backend

    @property
    def dtype(self) -> str:
        """The name of the parameters' dtype."""
        return self.store.dtype

    def gradients(self) -> Gradients:
        """New gradient slots for this model (one set per thread)."""
        return Gradients(self.store)

    def state(self) -> dict[str, HostArray]:
        """Name to host array of every parameter."""
        return self.store.to_host()

    def load_state(self, values: Mapping[str, HostArray], what: str = "weights") -> None:
        """Take all parameters from host arrays; names and shapes must fit exactly.

        Raises:
            CheckpointError: naming what is missing, unknown or of another shape; the model is unchanged then.
        """
        check_names(self.store.parameters, values, what)
        self.store.load(values, what)
