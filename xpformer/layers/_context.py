"""The context of one pass of data through a model: backend, tape, random key, gradients, observer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from xpformer.array import Array, is_floating
from xpformer.errors import ConfigError, TapeError
from xpformer.functional._op import Op, Pair
from xpformer.parameters import Gradients, Parameter
from xpformer.rng import MaskKey, Rng

if TYPE_CHECKING:
    from xpformer.backend import Backend
    from xpformer.layers._cache import KVCache
    from xpformer.layers._layer import Layer


class Tokens(NamedTuple):
    """Where the tokens of a pass stand in their sequences, and which keys are tokens."""

    positions: Any
    """(T,) or (B, T) int64."""
    mask: Any
    """(B, 1, 1, S) boolean, true where key j is a token and not padding; or ``None``."""


class Entry(NamedTuple):
    """What a forward leaves on the tape for its backward."""

    path: str
    op: Op
    pair: Pair
    saved: Any
    parameters: Mapping[str, Parameter]
    inputs: tuple[str, ...]
    """The arguments that are no parameters, floating-point, and so have a gradient to return."""


class Recomputed(NamedTuple):
    """What a layer that runs its forward again leaves on the tape."""

    path: str
    op: Layer
    saved: tuple[Any, tuple[Any, ...], Mapping[str, Any]]
    """Its arguments: ``x``, others, options."""
    start: Context
    """The pass as it was before the layer, with an empty tape: its masks and tokens are to be the same again."""


def _learns(entry: Entry | Recomputed) -> bool:
    """Whether a parameter gets a gradient when the entry is undone."""
    parameters = entry.parameters if isinstance(entry, Entry) else entry.op.named_parameters()
    return any(p.trainable for p in parameters.values())


class Observer:
    """Sees what happens in a pass.  Subclass it and override what you want to see; it must not write the arrays.

    Summary, profile, attention pictures and the hunt for a non-finite tensor are observers.
    """

    def phase(self, name: str) -> None:
        """A training step goes on to its next part, one of ``PHASES`` of the trainer, in this thread."""

    def enter(self, layer: Layer, direction: str) -> None:
        """A layer's ``forward`` or ``backward`` begins."""

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        """A layer's ``forward`` or ``backward`` has returned ``value``."""

    def before(self, path: str, op: Op, direction: str) -> None:
        """An operation is about to run."""

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """An operation's forward has run."""

    def backward(self, path: str, op: Op, pair: Pair, dy: Any, gradients: Mapping[str, Any]) -> None:
        """An operation's backward has run; ``gradients`` is by argument name."""


class Context:
    """What belongs to one pass of data through a model.  One context per pass and per thread.

    Args:
        backend: where the arrays live; its pairs run the operations.
        rng: the step's random numbers; ``None`` means inference: dropout and drop path do nothing.
        grads: where the backward leaves the parameters' gradients; without it nothing is kept for a backward.
        observer: sees every layer and operation.
        input_gradient: whether the model's backward returns the gradient of its input.
        cache: keys and values of earlier passes over the same sequences; for inference.
        recompute: whether layers that are :attr:`~Layer.recomputed` keep their input alone and run again in the
            backward: less memory, more time, the same bits.

    Attributes:
        tokens: what a model of sequences says of them to its layers; ``None``: a sequence each, from position 0.

    Raises:
        ConfigError: if there are both gradients and a cache.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        rng: Rng | None = None,
        grads: Gradients | None = None,
        observer: Observer | None = None,
        input_gradient: bool = False,
        cache: KVCache | None = None,
        recompute: bool = False,
    ) -> None:
        if grads is not None and cache is not None:
            raise ConfigError("a context has gradients or a cache, not both: the cached keys have no backward")
        self.backend = backend
        self.rng = rng
        self.grads = grads
        self.observer = observer
        self.input_gradient = input_gradient
        self.cache = cache
        self.recompute = recompute and grads is not None
        self.tokens: Tokens | None = None
        self.tape: list[Entry | Recomputed] | None = None if grads is None else []
        self._layers: list[Layer] = []
        self._uses: dict[str, int] = {}

    # ---- where the pass is ------------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """The path of the layer that is running, ``blocks.3.norm1``."""
        return self._layers[-1].path if self._layers else ""

    def mask_key(self) -> MaskKey | None:
        """A fresh key for one random mask of the running layer, or ``None`` in inference."""
        if self.rng is None:
            return None
        path = self.path
        use = self._uses.get(path, 0)
        self._uses[path] = use + 1
        return self.rng.mask_key(path, use)

    # ---- operations -------------------------------------------------------------------------------------------------

    def forward(self, op: Op, *arrays: Any, **options: Any) -> Any:
        """Run the backend's forward of ``op``; parameters among ``arrays`` are replaced by their data."""
        data = tuple([a.data if isinstance(a, Parameter) else a for a in arrays])
        pair = self.backend.pair(op, data, options)
        if self.observer is not None:
            self.observer.before(self.path, op, "forward")
        y, saved = pair.forward(*data, **options)
        if self.tape is not None:
            parameters = {n: a for n, a in zip(op.arguments, arrays, strict=False) if isinstance(a, Parameter)}
            inputs = tuple(
                n
                for n, a in zip(op.arguments, data, strict=False)
                if a is not None and n not in parameters and is_floating(a)
            )
            self.tape.append(Entry(self.path, op, pair, saved, parameters, inputs))
        if self.observer is not None:
            self.observer.forward(self.path, op, pair, data, options, y, saved)
        return y

    def backward(self, op: Op, dy: Any, *, need: Collection[str] | None = None) -> Any:
        """Pop what ``op``'s forward kept, add the parameters' gradients, return those of its other arrays.

        Args:
            op: the operation whose forward was the last one not yet undone.
            dy: the gradient of its output (a tuple for several outputs).
            need: which of its non-parameter arguments want a gradient; ``None`` wants all.

        Returns:
            The gradient, or a tuple of them where there are several; ``None`` where ``need`` is empty.

        Raises:
            TapeError: if this layer and operation were not the last to run forward.
        """
        path, _, pair, saved, parameters, inputs = self.pop(op)
        wanted = [n for n in inputs if need is None or n in need]
        trainable = {n: p for n, p in parameters.items() if p.trainable}
        if not wanted and not trainable:
            return None
        grads = self.grads
        assert grads is not None  # a context with a tape has gradients
        into = {n: slot for n in pair.into if n in trainable and (slot := grads.slot(trainable[n])) is not None}
        if self.observer is not None:
            self.observer.before(path, op, "backward")
        onto = {n: slot for n in pair.onto if n in trainable and (slot := grads.held(trainable[n])) is not None}
        extra = {k: slots for k, slots in (("into", into), ("onto", onto)) if slots}
        results = pair.backward(dy, saved, need=frozenset((*wanted, *trainable)), **extra)
        gradients = dict(zip(op.arguments, results, strict=False))
        del saved, results  # memory falls here, before the next layer allocates
        for name, parameter in trainable.items():
            if name in into and gradients[name] is into[name]:
                grads.filled(parameter)
            elif name in onto and gradients[name] is onto[name]:
                continue
            elif (gradient := gradients[name]) is not None:
                grads.add(parameter, gradient)
        if self.observer is not None:
            self.observer.backward(path, op, pair, dy, gradients)
        if len(wanted) == 1:
            return gradients[wanted[0]]
        return tuple(gradients[n] for n in wanted) if wanted else None

    def pop(self, op: Op | Layer) -> Any:
        """The last entry of the tape, which must be of ``op`` in the running layer.

        Raises:
            TapeError: if it is not.
        """
        here = f"{self.path}: " if self.path else ""
        if self.tape is None:
            raise TapeError(f"{here}backward of {_name(op)} without a tape; make the context with grads=Gradients(...)")
        if not self.tape:
            raise TapeError(
                f"{here}backward of {_name(op)}, but the tape is empty; forward did not run, or ran once less"
            )
        entry = self.tape[-1]
        if entry.op is not op or entry.path != self.path:
            raise self._disorder(f"{self.path or 'the model'} ({_name(op)})")
        return self.tape.pop()

    def _disorder(self, got: str) -> TapeError:
        """The error of a backward that is not that of the last entry."""
        assert self.tape
        entry = self.tape[-1]
        return TapeError(
            f"expected the backward of {entry.path or 'the model'} ({_name(entry.op)}), got {got}; "
            "a backward undoes its forward in the opposite order"
        )

    def settled(self) -> bool:
        """Whether nothing that was computed so far has a gradient to get: then the tape is emptied.

        A model asks between its layers, in the forward to keep nothing of those that are frozen, and at the same places
        in the backward to end there.
        """
        if self.tape is None or self.input_gradient or any(map(_learns, self.tape)):
            return False
        self.tape.clear()
        return True

    # ---- running a layer again --------------------------------------------------------------------------------------

    def fork(self, tape: list[Entry | Recomputed] | None) -> Context:
        """The pass from here on with another tape; nothing in it is recomputed."""
        fork = copy.copy(self)
        fork.tape, fork.recompute = tape, False
        fork._layers, fork._uses = [*self._layers], {**self._uses}
        return fork

    def go_on_from(self, fork: Context) -> None:
        """Go on where a fork has come to, but for its tape."""
        self.tokens, self._uses = fork.tokens, fork._uses

    def check_done(self, layer: Layer) -> None:
        """Raise :class:`~xpformer.errors.TapeError` if a layer's backward has left some of its forward undone."""
        if self.tape:
            raise self._disorder(f"the end of {layer.path or 'the model'} ({_name(layer)})")

    # ---- layers -----------------------------------------------------------------------------------------------------

    def enter(self, layer: Layer, direction: str) -> None:
        """A layer's ``forward`` or ``backward`` begins."""
        self._layers.append(layer)
        if self.observer is not None:
            self.observer.enter(layer, direction)

    def leave(self, layer: Layer, direction: str, value: Array | None) -> None:
        """A layer's ``forward`` or ``backward`` ends."""
        if self.observer is not None:
            self.observer.leave(layer, direction, value)
        self._layers.pop()


def _name(op: Op | Layer) -> str:
    """As messages call it."""
    return op.name if isinstance(op, Op) else type(op).__name__
