"""Which of this project's operations run on an array library, and which functions of the standard they call.

Every case of every operation and kernel runs on a backend, or on a bare namespace of the array API for which nobody
has written a backend, and is judged as the tests judge it.  What each operation calls is recorded in one more pass, by
arrays and a namespace that write down their own use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import array_api_compat

from xpformer.analysis.case import Case
from xpformer.analysis.cases import CASES
from xpformer.analysis.compare import DTYPES, compare_kernel, compare_operation
from xpformer.analysis.gradient_check import Probe, Row, check_operation
from xpformer.analysis.kernel_cases import KERNEL_CASES, KERNELS
from xpformer.array import Array, HostArray
from xpformer.backend import Backend, Status, get_backend, installed_backends
from xpformer.errors import BackendError, suggest
from xpformer.functional import OPERATIONS

_FUNCTIONS = """
    abs acos acosh add all any arange argmax argmin argsort asarray asin asinh astype atan atan2 atanh
    bitwise_and bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor broadcast_arrays
    broadcast_to can_cast ceil clip concat conj copysign cos cosh count_nonzero cumulative_prod cumulative_sum
    diff divide empty empty_like equal exp expand_dims expm1 eye finfo flip floor floor_divide from_dlpack full
    full_like greater greater_equal hypot iinfo imag isdtype isfinite isinf isnan less less_equal linspace log
    log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor matmul matrix_transpose max
    maximum mean meshgrid min minimum moveaxis multiply negative nextafter nonzero not_equal ones ones_like
    permute_dims positive pow prod real reciprocal remainder repeat reshape result_type roll round searchsorted
    sign signbit sin sinh sort sqrt square squeeze stack std subtract sum take take_along_axis tan tanh
    tensordot tile tril triu trunc unique_all unique_counts unique_inverse unique_values unstack var vecdot
    where zeros zeros_like
"""
STANDARD = frozenset(_FUNCTIONS.split())
"""The functions of the standard's revision 2024.12."""
_OPERATORS = """
    add sub mul truediv floordiv mod pow matmul and or xor lshift rshift radd rsub rmul rtruediv rfloordiv rmod
    rpow rmatmul rand ror rxor rlshift rrshift lt le gt ge eq ne neg pos invert abs getitem
"""
OPERATORS = frozenset(_OPERATORS.split())
"""What an array's operators are called between two underscores (``x[...] = y`` is in the standard, and not used)."""
ATTRIBUTES = frozenset(("mT",))
"""Attributes that compute; ``shape``, ``ndim``, ``dtype``, ``device`` and the dtypes themselves are not counted."""


@dataclass(frozen=True)
class Verdict:
    """Whether one operation or kernel is right on a library in one dtype, by every pair and case."""

    subject: str
    dtype: str
    cases: int
    reason: str = ""
    """The first thing that went wrong, in one line."""
    declared: str = ""
    """The reason of a deviation that the backend declares."""

    @property
    def ok(self) -> bool:
        """Whether all is right, or wrong as declared."""
        return bool(self.reason) == bool(self.declared)


@dataclass(frozen=True)
class Calls:
    """What of the standard one operation calls; a kernel has a forward only."""

    subject: str
    forward: tuple[str, ...]
    backward: tuple[str, ...] = ()

    @property
    def outside(self) -> tuple[str, ...]:
        """What is called and not in the standard."""
        return tuple(name for name in sorted({*self.forward, *self.backward}) if not in_standard(name))


def in_standard(name: str) -> bool:
    """Whether a recorded name is in the standard: ``exp``, ``.mT`` or ``__add__``."""
    if name.startswith("__"):
        return name.strip("_") in OPERATORS
    return name[1:] in ATTRIBUTES if name.startswith(".") else name in STANDARD


# ---- a library without a backend ------------------------------------------------------------------------------------


class NamespaceBackend(Backend):
    """A bare namespace of the array API on its default device."""

    mutable = False

    def __init__(self, name: str, xp: Any) -> None:
        super().__init__()
        self.name, self.xp = name, xp  # type: ignore[misc]

    @classmethod
    def status(cls) -> Status:
        """It was imported."""
        return Status(True, "a namespace without a backend")

    def dtype(self, name: str) -> Any:
        """As the base class's, in one line where the namespace has no such dtype."""
        if not hasattr(self.xp, name):
            raise BackendError(f"{self.name} has no dtype {name}")
        return super().dtype(name)


def find_library(name: str) -> Backend:
    """The backend of that name, else a backend made of the module.

    Raises:
        BackendError: if it is neither, or its arrays have no array-API namespace.
    """
    if name.partition(":")[0] in installed_backends():
        return get_backend(name)
    try:
        module = import_module(name)
    except (ImportError, ValueError) as error:
        near = suggest(name, installed_backends())
        reason = f"is no backend ({near}) and cannot be imported as a module: {error}"
        raise BackendError(f"{name} {reason}; pip install what is missing") from error
    return NamespaceBackend(name, _namespace_of(name, module))


def _namespace_of(name: str, module: ModuleType) -> Any:
    """The array-API namespace of the module's arrays: array-api-compat's where it wraps the library, else their own."""
    try:
        return array_api_compat.array_namespace(module.asarray(0.0))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f"{name} is no namespace of the array API: {reason}; name a module such as jax.numpy"
        ) from error


# ---- verdicts -------------------------------------------------------------------------------------------------------


def verdicts(backend: Backend, subjects: Sequence[str] = ()) -> Iterator[Verdict]:
    """Every case of every operation and kernel (or of ``subjects``), in float32 and in float64."""
    for name in subjects or (*OPERATIONS, *KERNELS):
        for dtype in DTYPES:
            declared = next((d.reason for d in backend.deviations if d.concerns(name, dtype)), "")
            cases = CASES[name] if name in CASES else KERNEL_CASES[name]
            yield Verdict(name, dtype, len(cases), _first_mistake(name, cases, backend, dtype), declared)


def _first_mistake(name: str, cases: Sequence[Case], backend: Backend, dtype: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong shows in the numbers
        for case in cases:
            try:
                wrong = next((row for row in _rows(name, case, backend, dtype) if not row.ok), None)
            except Exception as error:  # of a library that we know nothing of
                text = (str(error).splitlines() or [""])[0]
                return f"{case.name}: {type(error).__name__}: {text}"
            if wrong is not None:
                measure = f": error {wrong.error:.1e}, limit {wrong.limit:.1e}" if wrong.limit else " is not so"
                return f"{case.name}: {wrong.check} of {wrong.argument}{measure}"
    return ""


def _rows(name: str, case: Case, backend: Backend, dtype: str) -> Iterator[Row]:
    if name in KERNELS:
        yield from compare_kernel(KERNELS[name], case, backend, dtypes=(dtype,))
        return
    op = OPERATIONS[name]
    for pair in backend.pairs(op):
        if dtype == "float64":
            yield from check_operation(op, pair, case, backend)
        yield from compare_operation(op, pair, case, backend, dtypes=(dtype,))


# ---- what is called -------------------------------------------------------------------------------------------------


class RecordedArray:
    """An array that writes down the operators and attributes it is used by."""

    __xpformer_namespace__: Recorder

    def __init__(self, array: Any) -> None:
        self.array = array

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)
    dtype = property(lambda self: self.array.dtype)
    device = property(lambda self: array_api_compat.device(self.array))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks what an object can do; the operators are methods
            raise AttributeError(name)
        recorder = self.__xpformer_namespace__
        recorder.note(f".{name}")
        return recorder.wrap(getattr(self.array, name))

    def __array_namespace__(self, *, api_version: str | None = None) -> Recorder:
        return self.__xpformer_namespace__


def _operator(name: str) -> Callable[..., Any]:
    def method(self: RecordedArray, *others: Any) -> Any:
        recorder = self.__xpformer_namespace__
        recorder.note(name)
        return recorder.wrap(getattr(self.array, name)(*map(recorder.unwrap, others)))

    return method


for _name in (*OPERATORS, "setitem", "float", "int", "bool", "index"):
    setattr(RecordedArray, f"__{_name}__", _operator(f"__{_name}__"))


class Recorder:
    """A namespace whose functions write down that they were called; its arrays are :class:`RecordedArray`."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._target: set[str] | None = None
        self._kind = type("Recorded", (RecordedArray,), {"__xpformer_namespace__": self})

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._xp, name)
        if name not in STANDARD and (isinstance(value, type) or not callable(value) or hasattr(value, "dtype")):
            return value  # a dtype or a constant

        def function(*args: Any, **options: Any) -> Any:
            self.note(name)
            return self.wrap(value(*self.unwrap(args), **{k: self.unwrap(v) for k, v in options.items()}))

        return function

    @contextmanager
    def into(self, target: set[str]) -> Iterator[None]:
        """What is called inside goes to ``target``."""
        self._target = target
        try:
            yield
        finally:
            self._target = None

    def note(self, name: str) -> None:
        """Write down a call, if somebody listens."""
        if self._target is not None:
            self._target.add(name)

    def wrap(self, tree: Any) -> Any:
        """The arrays of nested tuples recorded."""
        if isinstance(tree, (tuple, list)):
            return type(tree)(map(self.wrap, tree))
        return self._kind(tree) if hasattr(tree, "shape") and hasattr(tree, "dtype") else tree

    def unwrap(self, tree: Any) -> Any:
        """The library's own arrays."""
        if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
            return type(tree)(map(self.unwrap, tree))
        return tree.array if isinstance(tree, RecordedArray) else tree


class RecordingBackend(Backend):
    """Another backend whose arrays are recorded; only portable pairs run on it."""

    mutable = False

    def __init__(self, inner: Backend) -> None:
        super().__init__()
        self.name, self.inner = inner.name, inner  # type: ignore[misc]
        self.xp, self.device = Recorder(inner.xp), inner.device

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A recorded array."""
        return self.xp.wrap(self.inner.asarray(host, dtype))

    def to_numpy(self, x: Array) -> HostArray:
        """As the other backend does."""
        return self.inner.to_numpy(self.xp.unwrap(x))


def calls(backend: Backend, subjects: Sequence[str] = ()) -> Iterator[Calls]:
    """What the portable form of every operation and kernel (or of ``subjects``) calls on this library, over all cases.

    Where the library fails, what was called until then.
    """
    recording = RecordingBackend(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in subjects or (*OPERATIONS, *KERNELS):
            forward: set[str] = set()
            backward: set[str] = set()
            for case in CASES[name] if name in CASES else KERNEL_CASES[name]:
                try:
                    _record(name, case, recording, forward, backward)
                except Exception:
                    continue
            yield Calls(name, tuple(sorted(forward)), tuple(sorted(backward)))


def _record(name: str, case: Case, recording: RecordingBackend, forward: set[str], backward: set[str]) -> None:
    recorder: Recorder = recording.xp
    if name in KERNELS:
        arrays, options = case.draw()
        given = [a if isinstance(a, tuple) else recording.asarray(a, "float64") for a in arrays]
        if any(isinstance(a, tuple) for a in given):
            options = {**options, "xp": recorder, "device": recording.device}
        with recorder.into(forward):
            KERNELS[name].portable(*given, **options)
        return
    probe = Probe(OPERATIONS[name], OPERATIONS[name].portable, case, recording)
    placed = probe.place()
    with recorder.into(forward):
        y, saved = probe.forward(*placed)
    dy = probe.on_device(probe.cotangent(y))
    with recorder.into(backward):
        probe.backward(dy, saved)
