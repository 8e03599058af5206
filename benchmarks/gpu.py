"""A training step of ours against torch's on the same card: ``python benchmarks/gpu.py --help``; see README.md.

Each library runs in a process of its own.  All of a comparison start from the same weights and see the same batches;
whose losses differ is not timed.  Rounds of steps take turns, so that a card that slows down does so for all.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.command import Parser, facts, several  # noqa: E402
from benchmarks.ours import Training  # noqa: E402
from benchmarks.report import with_ratios  # noqa: E402
from benchmarks.workers import CHECKED, Library, Worker, compare  # noqa: E402
from benchmarks.workloads import Workload  # noqa: E402
from xpformer.analysis.measure import FLOAT32_LOSS, TF32_LOSS  # noqa: E402
from xpformer.backend import MATMUL_PRECISIONS, Backend, get_backend  # noqa: E402
from xpformer.errors import XpformerError  # noqa: E402

LIBRARIES = {
    "ours": "the training loop's own step",
    "eager": "torch eager, scaled_dot_product_attention, fused AdamW",
    "manual": "torch eager, attention step by step, fused AdamW",
    "compile": "torch.compile of eager",
}
WORKLOADS = {
    "vit": Workload("ViT small, MNIST shapes, batch 128", "vit", "small", 128, clip=1.0),
    "gpt": Workload("GPT 6 x 384, batch 64 x 256", "gpt", "nanogpt", 64, 256, clip=1.0),
    "gpt2": Workload("GPT-2 124M, batch 4 x 1024", "gpt", "gpt2", 4, 1024, clip=1.0),
}


def job(base: dict[str, Any], library: str) -> dict[str, Any]:
    """What a library is told; it is in the JSON file too."""
    if library == "ours":
        return {**base, "library": library, "program": "benchmarks.ours:Training"}
    how = {"attention": "manual" if library == "manual" else "fused", "compile": library == "compile"}
    return {**base, "library": library, "program": "benchmarks.peers_torch:Training", **how}


# ---- a step as a CUDA graph -----------------------------------------------------------------------------------------


class Graph(Library):
    """Tries to record one of our steps into a CUDA graph by stream capture, and to replay it."""

    checked = 1

    def __init__(self, job: dict[str, Any]) -> None:
        self.ours = Training(job)

    def step(self) -> str:
        """What happened."""
        ours = self.ours
        replay = (_capture_cupy if ours.backend.name == "cupy" else _capture_torch)(ours)
        replay()
        ours.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            replay()
        ours.synchronize()
        took = f"{100 * (time.perf_counter() - began):.3f} ms"  # a tenth, in thousandths
        return f"captured; a replay takes {took} (of one and the same step: its batch and rate are fixed)"


def _capture_cupy(ours: Training) -> Callable[[], None]:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(CHECKED):  # what is compiled and allocated once
            ours.launch()
        stream.synchronize()
        stream.begin_capture()
        try:
            ours.launch()
        except Exception:  # the reason, not that ending fails too
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise
        graph = stream.end_capture()
    return lambda: graph.launch(stream)


def _capture_torch(ours: Training) -> Callable[[], None]:
    import torch

    for _ in range(CHECKED):
        ours.launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.launch()
    return graph.replay


# ---- the comparison -------------------------------------------------------------------------------------------------


def cards() -> list[str]:
    """Names and drivers of the GPUs."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def try_graph(base: dict[str, Any]) -> str:
    """What became of a step of ours as a CUDA graph; in a process of its own, which a failure may spoil."""
    if not base["device"].startswith("cuda"):
        return f"not tried: backend {base['backend']} has no CUDA graphs"
    worker = Worker({**base, "precision": "highest", "library": "graph", "program": "benchmarks.gpu:Graph"})
    worker.start()
    worker.end()
    return f"cannot be captured: {worker.cannot}" if worker.cannot else str(worker.values[0])


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
        ratio = f"{r['ratios']['eager']['median']:.2f}" if "eager" in r["ratios"] else "-"
        lines.append(f"{head}{1e3 * r['median']:>11.3f}{1e3 * r['minimum']:>12.3f}{ratio:>10}")
    return lines


def main() -> int:
    """The exit code: 1 if one of ours could not be measured, 2 if there is no such device."""
    parser = Parser(__doc__, WORKLOADS, LIBRARIES)
    parser.add_argument("--backend", default="cupy", help="ours; torch runs on its device (default: cupy)")
    parser.add_argument("--workloads", type=several(WORKLOADS), default=list(WORKLOADS), metavar="A,B")
    parser.add_argument("--only", type=several(LIBRARIES), default=list(LIBRARIES), metavar="A,B", help="libraries")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of a round")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu.json", help="the JSON file")
    options = parser.parse_args()
    try:
        if min(options.rounds, options.steps) < 1:
            raise XpformerError("--rounds and --steps are at least 1")
        backend = get_backend(options.backend)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.touch()
    except (XpformerError, OSError) as error:
        parser.error(str(error))
    about_machine = facts("torch", "cupy-cuda12x", "cupy-cuda13x") | {
        "cards and driver": cards(),
        "backend": backend.spec,
        "status": type(backend).status().detail,
    }
    print("\n".join(f"{key}: {value}" for key, value in about_machine.items()), flush=True)
    records: list[dict[str, Any]] = []
    graphs: dict[str, str] = {}
    for name in options.workloads:
        work = WORKLOADS[name].tiny() if options.tiny else WORKLOADS[name]
        base = {
            "workload": name,
            "work": asdict(work),
            "backend": backend.spec,
            "device": torch_device(backend),
            "read": False,
        }
        for precision in MATMUL_PRECISIONS:
            if precision not in backend.matmul_precisions:
                print(f"{name}: precision {precision} cannot run: backend {backend.spec} does not have it", flush=True)
                continue
            found = with_ratios(
                compare(
                    [job(base | {"precision": precision}, library) for library in options.only],
                    rounds=options.rounds,
                    steps=options.steps,
                    limit=FLOAT32_LOSS if precision == "highest" else TF32_LOSS,
                )
            )
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
