"""Ours: the training loop's own step, the generation of ``xpformer generate``, and what a machine can do at most."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.workers import Library
from benchmarks.workloads import IMAGES, Workload
from xpformer.analysis.peak import measured_peak, step_flops
from xpformer.backend import get_backend
from xpformer.generation import Sampling, generate_tokens
from xpformer.training import Trainer
from xpformer.training.environment import blas_kernels, environment_manifest, usable_cores


class Training(Library):
    """The trainer, with the number of threads and the strategy that it chooses itself."""

    def __init__(self, job: dict[str, Any]) -> None:
        work = Workload(**job["work"])
        self.backend = get_backend(job["backend"], job.get("precision", "highest"))
        model = work.make_model().to(self.backend, "float32")
        self.trainer = Trainer(model, work.make_batches(), work.train)

    def step(self) -> float:
        """The loss."""
        return self.trainer.step().loss

    def launch(self) -> None:
        """A step whose loss is not read."""
        self.trainer.step(read=False)

    def synchronize(self) -> None:
        """Wait for the device."""
        self.backend.synchronize()


class Generation(Library):
    """Greedy generation with the cache of keys and values; a step is a whole text."""

    checked = 1

    def __init__(self, job: dict[str, Any]) -> None:
        work = Workload(**job["work"])
        self.model: Any = work.make_model().to(get_backend(job["backend"]), "float32")
        self.model.load_state(work.weights())
        self.prompt, self.tokens = work.make_prompt(), work.tokens

    def step(self) -> list[int]:
        """The tokens."""
        written = generate_tokens(self.model, [self.prompt], tokens=self.tokens, sampling=Sampling(temperature=0.0))
        return [int(token) for (token,) in written]


class Machine(Library):
    """What this machine does at most with NumPy; and what a workload asks for."""

    checked = 1

    def __init__(self, job: dict[str, Any]) -> None:
        self.work = {name: Workload(**work) for name, work in job["works"].items()}
        self.tiny = job["tiny"]

    def step(self) -> dict[str, Any]:
        """FLOP/s of products of matrices, bytes/s of a matrix read by a product with a vector; whose kernels of BLAS
        they are; the workloads' needs."""
        rates = {
            "flops": max(measured_peak(usable_cores()) for _ in range(1 if self.tiny else 5)),
            "bytes": _reading(1 << (20 if self.tiny else 26)),
        }
        needs = {name: self._needs(work) for name, work in self.work.items()}
        return {"per_second": rates, "kernels": sorted(blas_kernels(environment_manifest())), "needs": needs}

    def _needs(self, work: Workload) -> dict[str, int]:
        """FLOPs of the matrix products of a step; or the bytes of weights that a text reads, all but the positions."""
        model: Any = work.make_model().to("numpy:portable", "float32")
        if work.prompt:
            read = sum(p.size for n, p in model.named_parameters().items() if not n.startswith("positions."))
            return {"bytes": 4 * read * work.tokens}
        c = model.config
        if work.model in IMAGES:
            return {"flops": work.batch * step_flops(model, (c.channels, c.image_size, c.image_size))}
        return {"flops": work.batch * step_flops(model, (work.tokens,), c.vocabulary)}


def _reading(numbers: int) -> float:
    """Bytes/s of a product of a matrix far larger than the caches with a vector, the best of ten."""
    matrix, vector = np.ones((numbers >> 10, 1 << 10), np.float32), np.ones(1 << 10, np.float32)
    best = np.inf
    for _ in range(10):
        began = time.perf_counter()
        np.matmul(matrix, vector)
        best = min(best, time.perf_counter() - began)
    return float(matrix.nbytes / best)
