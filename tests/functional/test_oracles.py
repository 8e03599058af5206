"""Results and gradients of every pair are those of torch's autograd, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.functional.test_pairs import pairs
from xpformer.analysis.cases import CASES
from xpformer.analysis.gradient_check import Probe
from xpformer.analysis.measure import TORCH, Measure, equal, magnitude
from xpformer.array import HostArray
from xpformer.backend import Backend, get_backend
from xpformer.functional import OPERATIONS
from xpformer.functional.random_bits import random_bits
from xpformer.rng import MaskKey

torch = pytest.importorskip("torch")
oracles = pytest.importorskip("tests.oracles")


def autograd(probe: Probe, cotangent: tuple[HostArray, ...]) -> dict[str, HostArray]:
    """torch's results and gradients, by the names of the probe."""
    tensors = {n: None if a is None else torch.from_numpy(np.array(a)) for n, a in probe.host.items()}
    leaves = {n: tensors[n].requires_grad_() for n in probe.floating}
    y = oracles.ORACLES[probe.op.name](*tensors.values(), **probe.options)
    parts = y if isinstance(y, tuple) else (y,)
    loss = sum((part * torch.from_numpy(c)).sum() for part, c in zip(parts, cotangent, strict=True))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    named = {f"y{i}" if i else "y": part.detach().numpy() for i, part in enumerate(parts)}
    return named | {n: g.numpy() for n, g in zip(leaves, found, strict=True)}


def disagreements(op: str, pair: Any, backend: Backend) -> list[str]:
    """Where a pair and torch part."""
    wrong: list[Measure] = []
    for case in CASES[op]:
        probe = Probe(OPERATIONS[op], pair, case, backend)
        if not probe.covered:
            continue
        y, saved = probe.forward()
        cotangent = probe.cotangent(y)
        gradients = probe.backward(probe.on_device(cotangent), saved, need=frozenset(probe.floating))
        ours = {f"y{i}" if i else "y": backend.to_numpy(part) for i, part in enumerate(y)} | probe.to_host(gradients)
        theirs = autograd(probe, cotangent)
        assert ours.keys() == theirs.keys()
        # in a shape case a gradient may be zero but for rounding: it is measured by the largest of the case
        scale = max(map(magnitude, theirs.values())) if case.shape_only else None
        wrong += [equal(f"{op}, {case.name}, {n}", a, theirs[n], TORCH, scale=scale) for n, a in ours.items()]
    return [str(measure) for measure in wrong if not measure.ok]


def test_every_operation_has_an_oracle() -> None:
    assert oracles.ORACLES.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_equals_torch_autograd(spec: str, op: str) -> None:
    backend = get_backend(spec)
    for pair in pairs(backend, op):
        assert disagreements(op, pair, backend) == []


@pytest.mark.parametrize("first", [0, 1, 2**31 - 1, 2**32 - 1, 2**32, 2**40])
def test_random_bits_are_the_32_bit_hash(backend: Backend, first: int) -> None:
    key = MaskKey(0xDEADBEEF, 0x01234567, first)
    bits = backend.kernel(random_bits)((3, 5), key, xp=backend.xp, device=backend.device)
    assert np.array_equal(backend.to_numpy(bits).astype(np.uint32), oracles.random_bits((3, 5), key))
