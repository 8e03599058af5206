"""Training and generation of ours against PyTorch, JAX and transformers on a CPU: ``nox -s bench``; see README.md.

Each library runs in a process of its own, with the same CPUs and the same passive waiting.  All start from the same
weights and see the same batches; whose losses or tokens differ is not timed.  Rounds of steps take turns, so that other
work on the machine hits all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.command import Parser, facts, several  # noqa: E402
from benchmarks.workers import Worker, compare  # noqa: E402
from benchmarks.workloads import Workload  # noqa: E402
from xpformer.analysis.measure import FLOAT32_LOSS  # noqa: E402
from xpformer.errors import XpformerError  # noqa: E402
from xpformer.training.environment import usable_cores  # noqa: E402

PACKAGES = ("torch", "jax", "transformers", "numba", "threadpoolctl")


class Peer(NamedTuple):
    """A library: how tables call it, what it is, and what its classes are told."""

    label: str
    about: str
    training: str = ""
    """``module:class`` for training; empty if it does not take part."""
    generation: str = ""
    options: Mapping[str, Any] = {}


def _ours(label: str, spec: str, about: str) -> Peer:
    return Peer(label, about, "benchmarks.ours:Training", "benchmarks.ours:Generation", {"backend": spec})


_TORCH = ("benchmarks.peers_torch:Training", "benchmarks.peers_torch:Generation")
LIBRARIES = {
    "eager": Peer("PyTorch, SDPA", "eager, fused AdamW; the ratios are to this one", *_TORCH, {"attention": "fused"}),
    "manual": Peer("PyTorch, manual", "eager, attention step by step", *_TORCH, {"attention": "manual"}),
    "compile": Peer("torch.compile", "of eager", _TORCH[0], "", {"attention": "fused", "compile": True}),
    "jax": Peer("JAX, jit", "the whole step compiled, its buffers donated", "benchmarks.peers_jax:Training"),
    "transformers": Peer("transformers", "its generate", "", "benchmarks.peers_torch:Transformers"),
    "portable": _ours("xpformer, portable", "numpy:portable", "ours in the array API alone"),
    "numpy": _ours("xpformer, NumPy", "numpy", "ours, without Numba"),
    "fast": _ours("xpformer, + Numba", "numpy:fast", "ours, with Numba"),
}
OURS = ("portable", "numpy", "fast")
WORKLOADS = {
    "W1": Workload("ViT of MNIST (seed), batch 100", "vit", "seed", 100),
    "W2a": Workload("GPT 4 x 128, batch 12 x 64", "gpt", "nanogpt-baby", 12, 64),
    "W2b": Workload("GPT 6 x 384, batch 8 x 256", "gpt", "nanogpt", 8, 256),
    "W3": Workload("GPT-2 124M, batch 4 x 64", "gpt", "gpt2", 4, 64, alive=4),  # 3 GB each
    "W4": Workload("Swin of MNIST, batch 128", "swin", "mnist", 128),
    "generate": Workload("GPT-2 124M writes 64 tokens", "gpt", "gpt2", 1, 64, prompt=16),
    "scaling": Workload("the cost of a step over batch and tokens; ours alone", "gpt", "nanogpt-baby", 12, 64),
}
QUOTED = {
    "W1": "10.4 s a step of the NumPy code that this project began with (float64, plain SGD), by a study on another "
    "machine, two cores of an AMD EPYC (Zen 4), where PyTorch eager took 0.16 s",
}
"""Figures of others."""


def environment(threads: int) -> dict[str, str]:
    """Variables of every worker: who waits sleeps, in every library, and none takes more threads than the others."""
    count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads))
    waiting = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    given = {name: os.environ[name] for name in ("OPENBLAS_THREAD_TIMEOUT",) if name in os.environ}
    return {**count, **waiting, **given, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}


def jobs(name: str, work: Workload, only: list[str], threads: int) -> list[dict[str, Any]]:
    """What the workers of a workload are told."""
    found = []
    for library in only:
        peer = LIBRARIES[library]
        if program := peer.generation if work.prompt else peer.training:
            told = {"library": library, "label": peer.label, "program": program, **peer.options}
            found.append({"workload": name, "work": asdict(work), "threads": threads, "read": True, **told})
    return found


def groups(told: list[dict[str, Any]], alive: int) -> list[list[dict[str, Any]]]:
    """The jobs in groups of at most ``alive``; the two that the ratios are to are in each."""
    baselines = [job for job in told if job["library"] in report.BASELINES]
    others = [job for job in told if job["library"] not in report.BASELINES]
    size = alive - len(baselines)
    return [baselines + others[i : i + size] for i in range(0, max(1, len(others)), size)]


def measure_machine(works: dict[str, Workload], threads: int, *, tiny: bool) -> dict[str, Any]:
    """Rates of this machine and what the workloads need, in a process of its own."""
    told = {"program": "benchmarks.ours:Machine", "works": {n: asdict(w) for n, w in works.items()}, "tiny": tiny}
    worker = Worker({**told, "threads": threads, "read": True}, environment(threads))
    worker.start()
    worker.end()
    if worker.cannot:
        raise XpformerError(f"the rates of this machine cannot be measured: {worker.cannot}")
    found: dict[str, Any] = worker.values[0]
    return found


def measure_startup(times: int) -> list[float]:
    """Seconds of ``xpformer --help``, the first one not counted."""
    seconds = []
    for _ in range(1 + times):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "xpformer", "--help"], capture_output=True, check=True, cwd=ROOT)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def series(work: Workload, *, tiny: bool) -> dict[str, list[Workload]]:
    """The workloads of which the cost of a step is measured over batch, over tokens, and over a long context."""
    factors = (1, 2) if tiny else (0.25, 0.5, 1, 2, 4)
    return {
        "batch": [replace(work, batch=int(work.batch * f)) for f in factors],
        "tokens": [replace(work, tokens=int(work.tokens * f)) for f in factors],
        "long": [replace(work, batch=1, tokens=int(work.tokens * f)) for f in ((2, 4) if tiny else (4, 8, 16, 32))],
    }


def main() -> int:
    """The exit code: 1 if one of ours could not be measured (without Numba, ``fast`` need not), 2 for bad options."""
    parser = Parser(__doc__, WORKLOADS, {name: f"{p.label} ({p.about})" for name, p in LIBRARIES.items()})
    parser.add_argument("--workloads", type=several(WORKLOADS), default=list(WORKLOADS), metavar="A,B")
    parser.add_argument("--only", type=several(LIBRARIES), default=list(LIBRARIES), metavar="A,B", help="libraries")
    parser.add_argument("--rounds", type=int, default=12, help="that count (default: 12)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (default: 2)")
    parser.add_argument("--steps", type=int, default=0, help="of a round, instead of seconds")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each library (default: all CPUs)")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a test of this program")
    parser.add_argument("--by", choices=report.STATISTICS, default="median", help="statistic of the ratios shown")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="the JSON file")
    parser.add_argument("--figure", type=Path, help="the picture, as docs/bench.png; by default none")
    parser.add_argument("--markdown", type=Path, help="the table as Markdown; by default none")
    parser.add_argument("--from", type=Path, nargs="+", dest="files", help="measure nothing, show these JSON files")
    options = parser.parse_args()
    try:
        if min(options.rounds, options.steps + 1) < 1 or not options.seconds > 0:
            raise XpformerError("--rounds is at least 1, --steps not negative, --seconds more than 0")
        if not 1 <= options.threads <= usable_cores():
            raise XpformerError(f"--threads is {options.threads}, this process may use {usable_cores()} CPUs")
        for path in filter(None, (None if options.files else options.out, options.figure, options.markdown)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        document = report.read(options.files) if options.files else measure(options)
        show(document, options)
    except (XpformerError, OSError) as error:
        parser.error(str(error))
    timed = document["measurements"] + document["scaling"]
    return int(any(r["cannot"] for r in timed if r["library"] in OURS and (r["library"] != "fast" or "values" in r)))


def measure(options: Any) -> dict[str, Any]:
    """The document; what is done is in the file after each workload."""
    works = {name: WORKLOADS[name].tiny() if options.tiny else WORKLOADS[name] for name in options.workloads}
    scaled = works.pop("scaling", None)
    machine = measure_machine(works, options.threads, tiny=options.tiny)
    document: dict[str, Any] = {
        **facts(*PACKAGES),
        "threads": options.threads,
        "environment": environment(options.threads),
        "per_second": machine["per_second"],
        "kernels": machine["kernels"],
        "startup_seconds": measure_startup(1 if options.tiny else 9),
        "workloads": {},
        "measurements": [],
        "scaling": [],
    }
    about = {k: v for k, v in document.items() if v not in ({}, [])}
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    how = {"rounds": options.rounds, "steps": options.steps, "seconds": options.seconds}
    how["environment"] = environment(options.threads)

    def save() -> None:
        options.out.write_text(json.dumps(document, indent=1, default=str) + "\n")

    for name, work in works.items():
        quoted = "" if options.tiny else QUOTED.get(name, "")
        document["workloads"][name] = {"about": work.about, **machine["needs"][name], "quoted": quoted}
        limit, found = 0.0 if work.prompt else FLOAT32_LOSS, {}
        for group in groups(jobs(name, work, options.only, options.threads), work.alive):
            records = report.with_ratios(compare(group, limit=limit, **how))
            found = {record["library"]: record for record in records} | found  # baselines: those of the first group
        records = [found[library] for library in options.only if library in found]
        document["measurements"] += records
        rates, again = document["per_second"], measure_machine({}, options.threads, tiny=options.tiny)["per_second"]
        document["per_second"] = {what: max(rate, again[what]) for what, rate in rates.items()}
        save()
        part = document | {"workloads": {name: document["workloads"][name]}, "measurements": records}
        print("\n".join(report.table(part, options.by)), flush=True)
    ours = [library for library in options.only if library in OURS[1:]]
    for title, points in series(scaled, tiny=options.tiny).items() if scaled else ():
        told = [(library, work) for library in ours for work in points]
        found = [job for library, work in told for job in jobs("scaling", work, [library], options.threads)]
        records = compare(found, limit=FLOAT32_LOSS, alike=False, **how)
        document["scaling"] += [record | {"series": title} for record in records]
        save()
    save()
    return document


def show(document: dict[str, Any], options: Any) -> None:
    """The table, and what is written."""
    if document["measurements"]:
        print("\n" + "\n".join(report.table(document, options.by)))
    if document["scaling"]:
        print("\n" + "\n".join(report.scaling(document)))
    print(report.startup(document["startup_seconds"]))
    if options.markdown:
        parts = [report.table(document, options.by, markdown=True), report.scaling(document, markdown=True)]
        options.markdown.write_text("\n\n".join("\n".join(part) for part in parts if part) + "\n")
    if options.figure:
        report.figure(document, options.figure, options.by)
    for path in filter(None, (None if options.files else options.out, options.figure, options.markdown)):
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
