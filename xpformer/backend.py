"""A backend: one array library on one device, with the pairs and kernels that it replaces.

A backend package is one module with a subclass of :class:`Backend`, announced by an entry point of the group
``xpformer.backends``::

    [project.entry-points."xpformer.backends"]
    mylib = "xpformer_mylib:MyBackend"

``get_backend("mylib:option")`` imports it and calls ``MyBackend("option")``.  The core names no array library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import numpy as np

from xpformer.array import Array, Runner
from xpformer.errors import BackendError, suggest
from xpformer.functional._op import Kernel, Op, Pair

GROUP = "xpformer.backends"
MATMUL_PRECISIONS = ("highest", "high")
"""``highest`` multiplies in float32; ``high`` lets a GPU round the factors to TF32, 10 bits of mantissa."""


@dataclass(frozen=True)
class Deviation:
    """Where a backend is known to differ, declared once for the tests, the documentation and the command line."""

    operation: str
    """An operation or a kernel."""
    reason: str
    """Why, and by how much."""
    dtype: str = ""
    """Where only one dtype differs, which; else all."""

    def concerns(self, operation: str, dtype: str) -> bool:
        """Whether it says that ``operation`` differs in ``dtype``."""
        return operation == self.operation and self.dtype in ("", dtype)

    def __str__(self) -> str:
        return f"{self.operation}{self.dtype and f' in {self.dtype}'}: {self.reason}"


@dataclass(frozen=True)
class Status:
    """What ``xpformer backends`` says of one backend."""

    usable: bool
    detail: str
    """Library version and device, or what is missing."""
    repair: str = ""
    """The command that adds what is missing."""


class Backend:
    """One array library on one device.  The only place where arrays cross between host and device.

    Subclasses set :attr:`name`, :attr:`xp` and :attr:`device`, and override what their library does differently.
    """

    name: ClassVar[str]
    mutable: ClassVar[bool] = True
    """Whether ``x[...] = y`` writes in place and slices are views."""
    shares_batch: ClassVar[bool] = False
    """Whether training computes on threads of its own (else the library runs each operation in parallel itself)."""
    shares_operations: bool = False
    """Whether those threads can also share single operations (:meth:`sharing_operations`)."""
    strides: ClassVar[bool] = True
    """Whether a view may lie in another order or with gaps in memory (elsewhere every array is contiguous)."""
    host_memory: ClassVar[bool] = False
    """Whether reading a value is free; elsewhere it waits for the device, and training avoids it."""
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    deviations: ClassVar[tuple[Deviation, ...]] = ()
    matmul_precisions: tuple[str, ...] = ("highest",)
    """Those of :data:`MATMUL_PRECISIONS` that it has on its device."""
    matmul_precision: str = "highest"
    """The one that matrix products have: :meth:`set_matmul_precision` changes it."""

    def __init__(self, option: str = "") -> None:
        """``option`` is what stands behind the colon of ``name:option``; empty means the default device."""
        if option:
            raise BackendError(f"backend {self.name} takes no option, got {self.name}:{option}; use {self.name}")
        self.option: str = option
        self.xp: Any = None
        self.device: Any = None
        self._pairs: Mapping[str, Sequence[Pair]] = {}
        self._kernels: Mapping[str, Callable[..., Any]] = {}

    @classmethod
    def status(cls) -> Status:
        """Whether the library is installed and has a usable device."""
        raise NotImplementedError

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """What this machine offers, as texts for :func:`get_backend`; the first is the default."""
        return (cls.name,)

    @property
    def spec(self) -> str:
        """The text that :func:`get_backend` made this backend from."""
        return f"{self.name}:{self.option}" if self.option else self.name

    def __repr__(self) -> str:
        return f"<backend {self.spec}>"

    # ---- arrays -----------------------------------------------------------------------------------------------------

    def dtype(self, name: str) -> Any:
        """The library's dtype object of that name; raises :class:`~xpformer.errors.BackendError` if unsupported."""
        if name not in self.dtypes and not name.startswith(("int", "uint", "bool")):
            raise BackendError(f"backend {self.spec} has no dtype {name!r}; it trains in {', '.join(self.dtypes)}")
        return getattr(self.xp, name)

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """Copy a NumPy array (or number) to the device."""
        array = np.ascontiguousarray(host) if np.ndim(host) else np.asarray(host)
        kind = self.dtype(dtype or array.dtype.name)
        return self.xp.asarray(array, dtype=kind, device=self.device, copy=True)

    def adopt(self, host: Any, dtype: str) -> Any:
        """As :meth:`asarray`, of an array that its maker gives away: where no copy is needed, none is made."""
        return self.asarray(host, dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Copy a device array to the host (waits for the device); what is saved does not change with the next step."""
        return np.array(x)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array of zeros on the device."""
        return self.xp.zeros(shape, dtype=self.dtype(dtype), device=self.device)

    def set_matmul_precision(self, name: str) -> None:
        """Choose how matrix products treat float32; :func:`get_backend` calls it each time.

        Raises:
            BackendError: if there is no such precision, or not here.
        """
        if name not in MATMUL_PRECISIONS:
            raise BackendError(f"unknown matmul precision {name!r}; {suggest(name, MATMUL_PRECISIONS)}")
        if name not in self.matmul_precisions:
            raise BackendError(
                f"backend {self.spec} has no matmul precision {name!r}, only {', '.join(self.matmul_precisions)} "
                "(float32 exact); take --matmul-precision highest"
            )
        self.matmul_precision = name

    def sharing_operations(self, run: Runner, threads: int) -> AbstractContextManager[None]:
        """Operations that the calling thread, and no other, runs inside may be done by ``threads`` threads.

        Their parts go through ``run``, which runs them in turn where it is called inside of one of its own tasks.
        """
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def memory(self) -> int:
        """Bytes in use on the device (0 where the library does not tell)."""
        return 0

    # ---- pairs and kernels ------------------------------------------------------------------------------------------

    def pair(self, op: Op, arrays: Sequence[Array | None], options: Mapping[str, Any]) -> Pair:
        """The pair that runs ``op`` on these arguments: the first replacement that covers them, else the portable."""
        for pair in self._pairs.get(op.name, ()):
            if pair.covers(*arrays, **options):
                return pair
        return op.portable

    def pairs(self, op: Op) -> tuple[Pair, ...]:
        """Every pair of ``op`` that this backend has, in the order of choice, the portable one last."""
        return (*self._pairs.get(op.name, ()), op.portable)

    def kernel(self, kernel: Kernel) -> Callable[..., Any]:
        """The function that runs ``kernel``: the replacement, else the portable one."""
        return self._kernels.get(kernel.name, kernel.portable)

    def replaced(self) -> dict[str, tuple[str, ...]]:
        """What this backend replaces: operation or kernel name to the names of its pairs."""
        pairs = {name: tuple(p.name for p in pairs) for name, pairs in self._pairs.items()}
        return pairs | {name: (function.__name__,) for name, function in self._kernels.items()}


def installed_backends() -> dict[str, EntryPoint]:
    """Name to entry point of every backend package that is installed."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def backend_class(name: str) -> type[Backend]:
    """Import the backend package of that name.

    Raises:
        BackendError: if there is none, or its library is not installed.
    """
    known = installed_backends()
    if name not in known:
        raise BackendError(f"unknown backend {name!r}; {suggest(name, known)}")
    try:
        loaded: type[Backend] = known[name].load()
    except ImportError as error:
        raise BackendError(f"backend {name} cannot be imported: {error}") from error
    return loaded


def get_backend(spec: str, matmul_precision: str = "highest") -> Backend:
    """The backend of a text such as ``numpy``, ``numpy:portable``, ``torch:cuda:0`` or ``cupy:1``.

    Args:
        spec: name and option.
        matmul_precision: ``highest``, float32 exact, or ``high``, where the backend has it: a backend of its own.

    Raises:
        BackendError: if it is unknown, not installed, has no usable device or not this precision.  No other backend
            takes its place.
    """
    backend = _made(spec, matmul_precision)
    backend.set_matmul_precision(matmul_precision)  # each time: the switch of a library may be one for the process
    return backend


@cache
def _made(spec: str, _matmul_precision: str) -> Backend:
    """One backend for each text and precision."""
    name, _, option = spec.partition(":")
    cls = backend_class(name)
    status = _status(cls)
    if not status.usable:
        raise BackendError(f"backend {name} cannot be used: {status.detail}; {status.repair}")
    return cls(option)


def _status(cls: type[Backend]) -> Status:
    """The backend's own word; a library that is installed and cannot be imported is not usable."""
    try:
        return cls.status()
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Status(False, f"its library cannot be imported: {reason}", "install the library again")


def statuses(names: Iterable[str] | None = None) -> dict[str, Status]:
    """The status of every installed backend package."""
    found = {}
    for name in names if names is not None else installed_backends():
        try:
            found[name] = _status(backend_class(name))
        except BackendError as error:
            found[name] = Status(False, str(error))
    return found
