"""What all optimizers share: moments beside the parameters, in flat segments, updated in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from xpformer.array import HostArray, Runner, namespace, spans
from xpformer.errors import CheckpointError, ConfigError
from xpformer.functional._op import Kernel
from xpformer.parameters import ParameterStore


def in_turn(tasks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run one after the other."""
    return [task() for task in tasks]


def keep_finite(finite: Any, new: tuple[Any, ...], old: tuple[Any, ...]) -> tuple[Any, ...]:
    """``new`` where ``finite``, else ``old``; the flag may be a bool or a 0-d array that stays on its device."""
    if isinstance(finite, bool):
        return new if finite else old
    xp = namespace(new[0])
    return tuple(xp.where(finite, a, b) for a, b in zip(new, old, strict=True))


class Optimizer:
    """Base of the update rules.  A subclass names its moments and its kernel.

    Args:
        store: the parameters.
        weight_decay: for the parameters that decay (matrices), 0 for the others.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    kernel: ClassVar[Kernel]

    def __init__(self, store: ParameterStore, *, weight_decay: float = 0.0) -> None:
        if not weight_decay >= 0.0:
            raise ConfigError(f"weight_decay = {weight_decay} is negative")
        self.store = store
        self.weight_decay = weight_decay
        self.state: dict[str, list[Any]] = {
            name: [
                store.backend.zeros(s.data.shape, store.dtype) if s.key.trainable else s.data[:0]
                for s in store.segments
            ]
            for name in self.moments
        }

    def hyperparameters(self, step: int) -> dict[str, Any]:
        """The kernel's keyword arguments besides lr, weight_decay, scale and finite, for the 1-based ``step``."""
        raise NotImplementedError

    def step(
        self,
        gradients: Sequence[Any],
        *,
        lr: float,
        step: int,
        scale: Any = 1.0,
        finite: Any = True,
        run: Runner = in_turn,
        parts: int = 1,
    ) -> None:
        """Update all trainable parameters.

        Args:
            gradients: flat segments, from ``Gradients.finish()``.
            lr: learning rate.
            step: 1 for the first update.
            scale: factor on the gradients (clipping), a number or a 0-d device array.
            finite: where false, nothing changes; a bool or a 0-d device array.
            run: runs the parts.
            parts: slices that each segment is updated in.
        """
        backend = self.store.backend
        kernel = backend.kernel(self.kernel)
        hyper = self.hyperparameters(step) | {"scale": scale, "finite": finite}

        def part(i: int, span: slice) -> Callable[[], None]:
            segment = self.store.segments[i]
            decay = self.weight_decay if segment.key.decay else 0.0
            states = [self.state[name][i] for name in self.moments]

            def update() -> None:
                old = [segment.data[span], *(s[span] for s in states)]
                new = kernel(
                    old[0], gradients[i][span], *old[1:], lr=lr * segment.key.lr_scale, weight_decay=decay, **hyper
                )
                for target, before, after in zip([segment.data, *states], old, new, strict=True):
                    if after is not before:
                        target[span] = after

            return update

        def whole(i: int) -> None:
            segment = self.store.segments[i]
            decay = self.weight_decay if segment.key.decay else 0.0
            states = [self.state[name][i] for name in self.moments]
            rate = lr * segment.key.lr_scale
            data, *after = kernel(segment.data, gradients[i], *states, lr=rate, weight_decay=decay, **hyper)
            self.store.write(i, data)
            for name, value in zip(self.moments, after, strict=True):
                self.state[name][i] = value

        trainable = [i for i, s in enumerate(self.store.segments) if s.key.trainable]
        if backend.mutable:
            run([part(i, span) for i in trainable for span in spans(gradients[i].shape[0], parts)])
        else:
            for i in trainable:
                whole(i)

    def to_host(self) -> dict[str, HostArray]:
        """The moments by ``moment.parameter``."""
        trainable = {name for name, p in self.store.parameters.items() if p.trainable}
        out: dict[str, HostArray] = {}
        for moment, flats in self.state.items():
            padded = [f if s.key.trainable else s.data for f, s in zip(flats, self.store.segments, strict=True)]
            out |= {f"{moment}.{n}": a for n, a in self.store.to_host(padded).items() if n in trainable}
        return out

    def load(self, values: Mapping[str, HostArray]) -> None:
        """Take the moments from host arrays; names and shapes must fit exactly.

        Raises:
            CheckpointError: naming what does not fit.
        """
        frozen = {n: p for n, p in self.store.parameters.items() if not p.trainable}
        loaded: dict[str, list[Any]] = {}
        unknown = sorted(name for name in values if name.partition(".")[0] not in self.moments)
        if unknown:
            raise CheckpointError(f"the optimizer has no moment {unknown[0]!r}; it keeps {', '.join(self.moments)}")
        for moment in self.moments:
            mine = {n.partition(".")[2]: a for n, a in values.items() if n.startswith(f"{moment}.")}
            mine |= {n: self.store.backend.to_numpy(p.data) for n, p in frozen.items()}
            flats = self.store.flatten(mine, f"moments {moment}")
            loaded[moment] = [
                self.store.backend.adopt(f, self.store.dtype) if s.key.trainable else s.data[:0]
                for f, s in zip(flats, self.store.segments, strict=True)
            ]
        self.state = loaded
