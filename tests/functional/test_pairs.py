"""Every pair of every operation on every backend, through the table of cases."""

from __future__ import annotations

import sys

import pytest

from xpformer.analysis.cases import CASES
from xpformer.analysis.compare import DTYPES, compare_kernel, compare_operation
from xpformer.analysis.gradient_check import Probe, check_operation, failures
from xpformer.analysis.kernel_cases import KERNEL_CASES, KERNELS
from xpformer.backend import Backend, get_backend
from xpformer.functional import OPERATIONS
from xpformer.functional._op import Pair


def pairs(backend: Backend, op: str) -> tuple[Pair, ...]:
    """The pairs to test on a backend: all; of NumPy those that are replaced, as numpy:portable has the others."""
    found = backend.pairs(OPERATIONS[op])
    return found[:-1] if backend.spec == "numpy" else found


def test_every_operation_and_kernel_has_cases() -> None:
    assert CASES.keys() == OPERATIONS.keys()
    assert KERNEL_CASES.keys() == KERNELS.keys()


@pytest.mark.parametrize("op", OPERATIONS)
def test_backward_is_the_vector_jacobian_product_of_forward(backend: Backend, op: str) -> None:
    for pair in pairs(backend, op):
        for case in CASES[op]:
            assert failures(check_operation(OPERATIONS[op], pair, case, backend)) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_agrees_with_numpy_portable_and_is_right_in_float32(backend: Backend, op: str, dtype: str) -> None:
    for pair in pairs(backend, op):
        for case in CASES[op]:
            assert failures(compare_operation(OPERATIONS[op], pair, case, backend, dtypes=(dtype,))) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_agree_with_numpy_portable(backend: Backend, kernel: str, dtype: str) -> None:
    for case in KERNEL_CASES[kernel]:
        assert failures(compare_kernel(KERNELS[kernel], case, backend, dtypes=(dtype,))) == []


def test_every_replaced_pair_covers_a_case_and_is_reached(backend: Backend) -> None:
    for name, op in OPERATIONS.items():
        for pair in backend.pairs(op)[:-1]:
            chosen = set()
            for dtype in backend.dtypes:
                for case in CASES[name]:
                    probe = Probe(op, pair, case, backend, dtype=dtype)
                    chosen.add(backend.pair(op, probe.place(), probe.options))
            assert pair in chosen, f"{name}: no case reaches the pair {pair.name}"


@pytest.mark.parametrize("op", OPERATIONS)
def test_pairs_that_work_in_blocks_are_right_across_them(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    """The cases are smaller than a block, so the blocks are made smaller than the cases."""
    backend = get_backend("numpy")
    for name, module in list(sys.modules.items()):
        if name.startswith("xpformer_numpy") and hasattr(module, "BLOCK"):
            monkeypatch.setattr(module, "BLOCK", 50)
    for pair in pairs(backend, op):
        for case in CASES[op]:
            assert failures(check_operation(OPERATIONS[op], pair, case, backend)) == []
            assert failures(compare_operation(OPERATIONS[op], pair, case, backend)) == []


def test_replaced_names_are_operations_and_kernels(backend: Backend) -> None:
    assert backend.replaced().keys() <= OPERATIONS.keys() | KERNELS.keys()
