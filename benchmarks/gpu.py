"""A training step of ours against torch's on the same card: ``python benchmarks/gpu.py --help``; see README.md.

Each library runs in a process of its own.  All of a comparison start from the same weights and see the same batches;
whose losses differ is not timed.  Rounds of steps take turns, so that a card that slows down does so for all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from xpformer.analysis.measure import FLOAT32_LOSS, TF32_LOSS, equal  # noqa: E402
from xpformer.backend import MATMUL_PRECISIONS, Backend, get_backend  # noqa: E402
from xpformer.data.batches import ImageBatches, TextBatches  # noqa: E402
from xpformer.data.images import ImageData, ImageSet  # noqa: E402
from xpformer.data.text import TextData  # noqa: E402
from xpformer.errors import XpformerError  # noqa: E402
from xpformer.layers import Layer  # noqa: E402
from xpformer.models.gpt import GPT, GPTConfig  # noqa: E402
from xpformer.models.vit import ViT, ViTConfig  # noqa: E402
from xpformer.rng import host_generator  # noqa: E402
from xpformer.training import TrainConfig, Trainer  # noqa: E402
from xpformer.training.environment import environment_manifest  # noqa: E402

CHECKED = 3  # first steps whose losses are compared; the second and third also show that the updates are equal
LIBRARIES = {
    "ours": "the training loop's own step",
    "eager": "torch eager, scaled_dot_product_attention, fused AdamW",
    "manual": "torch eager, attention step by step, fused AdamW",
    "compile": "torch.compile of eager",
}
WORKLOADS = {
    "vit": "ViT small, MNIST shapes, batch 128",
    "gpt": "GPT 6 x 384, batch 64 x 256",
    "gpt2": "GPT-2 124M, batch 4 x 1024",
}

# ---- what is trained ------------------------------------------------------------------------------------------------


def workload(name: str, *, tiny: bool) -> tuple[Layer, Any, TrainConfig]:
    """Model, batches and settings: random data, no dropout, so that every library computes the same."""
    draw = host_generator(0, "benchmark")
    train = TrainConfig(steps=10**6, lr=1e-3, warmup_steps=100, weight_decay=0.1, clip=1.0)
    if name == "vit":
        shape = ViTConfig.preset("small", **({"depth": 1} if tiny else {}))
        pixels = draw.integers(0, 256, (2048, 1, 28, 28)).astype(np.uint8)
        images = ImageSet(pixels, draw.integers(0, 10, 2048), tuple("0123456789"))
        data = ImageData("noise", images, images, images, (0.13,), (0.31,))
        size = 4 if tiny else 128
        return ViT(shape), ImageBatches(data, seed=0, batch_size=size), replace(train, batch_size=size)
    none = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
    small = {"context": 16, "dim": 32, "depth": 1, "heads": 2, "vocabulary": 65} if tiny else {}
    shape = GPTConfig.preset("nanogpt" if name == "gpt" else "gpt2", **none, **small)
    size = 2 if tiny else 64 if name == "gpt" else 4
    tokens = draw.integers(0, shape.vocabulary, 1 << 20)
    text = TextData("noise", tokens, tokens[:4096], tokens[:0], shape.vocabulary)
    batches = TextBatches(text, seed=0, batch_size=size, context=shape.context)
    return GPT(shape), batches, replace(train, batch_size=size)


class Ours:
    """The trainer."""

    def __init__(self, job: dict[str, Any]) -> None:
        model, batches, config = workload(job["workload"], tiny=job["tiny"])
        self.backend = get_backend(job["backend"], job["precision"])
        self.trainer = Trainer(model.to(self.backend, "float32"), batches, config)

    def loss(self) -> float:
        """Of one more step."""
        return self.trainer.step().loss

    def step(self) -> None:
        """One more step, without waiting for its loss."""
        self.trainer.step(read=False)

    def synchronize(self) -> None:
        """Wait for all steps."""
        self.backend.synchronize()


class Torch:
    """The same in torch: autograd, fused AdamW with two groups, clipping, the same host batches."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        import torch_models

        torch.backends.cuda.matmul.fp32_precision = "tf32" if job["precision"] == "high" else "ieee"
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision
        self.torch, self.device = torch, torch.device(job["device"])
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU; install a build of torch with CUDA")
        model, self.batches, self.config = workload(job["workload"], tiny=job["tiny"])
        store = model.to("numpy", "float32").store
        self.parameters = {
            name: torch.tensor(array, device=self.device, requires_grad=True) for name, array in store.to_host().items()
        }
        groups = [
            {
                "params": [self.parameters[n] for n, p in store.parameters.items() if p.decay is decays],
                "weight_decay": self.config.weight_decay * decays,
            }
            for decays in (True, False)
        ]
        c = self.config
        self.optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)
        table = None
        if isinstance(model, ViT):
            table = torch.tensor(np.array(model.positions.table.data), device=self.device)
        forward = torch_models.vit if isinstance(model, ViT) else torch_models.gpt
        attend = torch_models.ATTENTION["manual" if job["library"] == "manual" else "fused"]

        def objective(parameters: dict[str, Any], x: Any, y: Any) -> Any:
            logits = forward(parameters, model.config, table, x, attend)
            return torch.nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())

        self.objective = torch.compile(objective) if job["library"] == "compile" else objective
        self.done = 0
        self.schedule = c.make_schedule(c.total_steps(self.batches.steps_per_epoch))

    def _step(self) -> Any:
        x, y = (
            self.torch.from_numpy(np.ascontiguousarray(host)).to(self.device)
            for host in self.batches.train(self.done, 0, self.batches.batch_size)
        )
        self.optimizer.zero_grad()
        loss = self.objective(self.parameters, x, y)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.done)
        self.optimizer.step()
        self.done += 1
        return loss

    def loss(self) -> float:
        """Of one more step."""
        return float(self._step().detach())

    def step(self) -> None:
        """One more step, without waiting for its loss."""
        self._step()

    def synchronize(self) -> None:
        """Wait for all steps."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)


# ---- a process of its own -------------------------------------------------------------------------------------------


def work(job: dict[str, Any]) -> None:
    """Answer each line of stdin with one of JSON: the first losses, then the seconds a step of each round."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer

    def answer(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=out, flush=True)

    try:
        if job["library"] == "graph":
            answer({"graph": capture(job)})
            return
        library = Ours(job) if job["library"] == "ours" else Torch(job)
        answer({"losses": [library.loss() for _ in range(CHECKED)]})
        for line in sys.stdin:
            library.synchronize()
            began = time.perf_counter()
            for _ in range(int(line)):
                library.step()
            library.synchronize()
            answer({"seconds": (time.perf_counter() - began) / int(line)})
    except Exception as error:
        answer({"cannot": f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"})


def capture(job: dict[str, Any]) -> str:
    """Try to record one of our steps into a CUDA graph by stream capture, and replay it; what happened."""
    ours = Ours(job)
    replay = (_capture_cupy if ours.backend.name == "cupy" else _capture_torch)(ours)
    replay()
    ours.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        replay()
    ours.synchronize()
    seconds = (time.perf_counter() - began) / 10
    return f"captured; a replay takes {1e3 * seconds:.3f} ms (of one and the same step: its batch and rate are fixed)"


def _capture_cupy(ours: Ours) -> Callable[[], None]:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(CHECKED):  # what is compiled and allocated once
            ours.step()
        stream.synchronize()
        stream.begin_capture()
        try:
            ours.step()
        except Exception:  # the reason, not that ending fails too
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise
        graph = stream.end_capture()
    return lambda: graph.launch(stream)


def _capture_torch(ours: Ours) -> Callable[[], None]:
    import torch

    for _ in range(CHECKED):
        ours.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    return graph.replay


class Worker:
    """One library in its process."""

    def __init__(self, job: dict[str, Any]) -> None:
        command = [sys.executable, __file__, "--worker", json.dumps(job)]
        self.job, self.cannot, self.losses, self.seconds = job, "", [], []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> dict[str, Any]:
        """Its next answer; a process that died or failed says why in ``cannot``."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"cannot": f"its process ended with status {self.process.wait()}"}
        self.cannot = answer.get("cannot", "")
        return answer

    def round(self, steps: int) -> None:
        """Time some steps."""
        assert self.process.stdin is not None
        try:
            print(steps, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.cannot = "its process ended"
            return
        self.seconds += [s] if (s := self.read().get("seconds")) else []

    def end(self) -> None:
        """End the process and wait for it."""
        self.process.communicate()

    def record(self, baseline: float | None) -> dict[str, Any]:
        """What goes into the JSON file."""
        found = {**self.job, "losses": self.losses, "seconds": self.seconds, "cannot": self.cannot or None}
        if self.cannot or not self.seconds:
            return found
        median = statistics.median(self.seconds)
        return found | {"median": median, "minimum": min(self.seconds), "ratio": baseline and median / baseline}


# ---- the comparison -------------------------------------------------------------------------------------------------


def compare(base: dict[str, Any], libraries: list[str], *, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One workload at one precision."""
    workers = [Worker({**base, "library": library}) for library in libraries]
    try:
        for worker in workers:
            worker.losses = worker.read().get("losses", [])
        _check_losses(workers, base["precision"])
        for warm in [True] + [False] * rounds:
            for worker in workers:
                if not worker.cannot:
                    worker.round(steps)
                    if warm:
                        worker.seconds.clear()
    finally:
        for worker in workers:
            worker.end()
    baseline = next((w for w in workers if w.job["library"] == "eager" and not w.cannot), None)
    return [w.record(statistics.median(baseline.seconds) if baseline else None) for w in workers]


def _check_losses(workers: list[Worker], precision: str) -> None:
    """Whoever has other losses than the first is not timed."""
    able = [w for w in workers if not w.cannot]
    limit = FLOAT32_LOSS if precision == "highest" else TF32_LOSS
    for worker in able[1:]:
        measure = equal("losses", np.array(worker.losses), np.array(able[0].losses), limit)
        if not measure.ok:
            worker.cannot = f"its losses are not those of {able[0].job['library']}: {measure}"


def facts(backend: Backend) -> dict[str, Any]:
    """Date, card, driver and versions."""
    import importlib.metadata as metadata

    found = {k: v for k, v in environment_manifest().items() if k != "blas"}
    for package in ("torch", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        cards = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        cards = []
    return found | {"cards and driver": cards, "backend": backend.spec, "status": type(backend).status().detail}


def try_graph(base: dict[str, Any]) -> str:
    """What became of a step of ours as a CUDA graph; in a process of its own, which a failure may spoil."""
    if not base["device"].startswith("cuda"):
        return f"not tried: backend {base['backend']} has no CUDA graphs"
    worker = Worker(base | {"precision": "highest", "library": "graph"})
    happened: str = worker.read().get("graph") or f"cannot be captured: {worker.cannot}"
    worker.end()
    return happened


def torch_device(backend: Backend) -> str:
    """Where torch runs: on the backend's device."""
    if backend.name == "torch":
        return backend.option or "cpu"
    return f"cuda:{backend.option or 0}" if backend.name == "cupy" else "cpu"


def rows(records: list[dict[str, Any]]) -> list[str]:
    """The table as text."""
    lines = [f"{'workload':<9}{'precision':<11}{'library':<9}{'median ms':>11}{'minimum ms':>12}{'to eager':>10}"]
    for r in records:
        head = f"{r['workload']:<9}{r['precision']:<11}{r['library']:<9}"
        if "median" not in r:
            lines.append(f"{head}  cannot run: {r['cannot']}")
            continue
        ratio = f"{r['ratio']:.2f}" if r["ratio"] else "-"
        lines.append(f"{head}{1e3 * r['median']:>11.3f}{1e3 * r['minimum']:>12.3f}{ratio:>10}")
    return lines


def several(known: dict[str, str]) -> Callable[[str], list[str]]:
    """Names that are separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= known.keys():
            raise argparse.ArgumentTypeError(f"{text!r}: takes {', '.join(known)}")
        return names

    return parse


def main() -> int:
    """The exit code: 1 if one of ours could not be measured, 2 if there is no such device."""
    about = "\n".join(f"  {name:<9}{what}" for name, what in (WORKLOADS | LIBRARIES).items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="cupy", help="ours; torch runs on its device (default: cupy)")
    parser.add_argument("--workloads", type=several(WORKLOADS), default=list(WORKLOADS), metavar="A,B")
    parser.add_argument("--only", type=several(LIBRARIES), default=list(LIBRARIES), metavar="A,B", help="libraries")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu.json", help="the JSON file")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return 0
    try:
        if min(options.rounds, options.steps) < 1:
            raise XpformerError("--rounds and --steps are at least 1")
        backend = get_backend(options.backend)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.touch()
    except (XpformerError, OSError) as error:
        print(f"benchmarks/gpu.py: error: {error}", file=sys.stderr)
        return 2
    about_machine = facts(backend)
    print("\n".join(f"{key}: {value}" for key, value in about_machine.items()), flush=True)
    records: list[dict[str, Any]] = []
    graphs: dict[str, str] = {}
    for name in options.workloads:
        base = {"workload": name, "backend": backend.spec, "device": torch_device(backend), "tiny": options.tiny}
        for precision in MATMUL_PRECISIONS:
            if precision not in backend.matmul_precisions:
                print(f"{name}: precision {precision} cannot run: backend {backend.spec} does not have it", flush=True)
                continue
            found = compare(base | {"precision": precision}, options.only, rounds=options.rounds, steps=options.steps)
            print("\n".join(rows(found)), flush=True)
            records += found
        graphs[name] = try_graph(base)
        print(f"{name}: a step of ours as a CUDA graph: {graphs[name]}", flush=True)
    document = {**about_machine, "measurements": records, "cuda graphs": graphs}
    options.out.write_text(json.dumps(document, indent=1, default=str) + "\n")
    print(f"\n{chr(10).join(rows(records))}\n\nwritten: {options.out}")
    return int(any("median" not in r for r in records if r["library"] == "ours"))


if __name__ == "__main__":
    sys.exit(main())
