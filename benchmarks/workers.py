"""Libraries that are measured against each other, each in a process of its own.

A worker says what its first steps gave and how long they took; then it sleeps until a line of its standard input asks
for a round of steps.  So all libraries of a comparison can be alive, take turns, and never compute at once.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKED = 3  # first steps whose losses are compared; the second and third also show that the updates are equal


class Library:
    """What is measured.  A subclass is made from a job: the workload and the options of the library."""

    checked = CHECKED
    """First steps whose values are compared."""

    def step(self) -> Any:
        """One more step, and its value: the loss, or the tokens that it wrote."""
        raise NotImplementedError

    def launch(self) -> None:
        """One more step, without waiting for its value."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for all steps."""


# ---- in the process of a library ------------------------------------------------------------------------------------


def serve(job: dict[str, Any]) -> None:
    """Answer with one line of JSON: first what the first steps gave, then the seconds of each step of each round."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer

    def answer(document: dict[str, Any]) -> None:
        print(json.dumps(document), file=out, flush=True)

    try:
        _stay_on(job.get("threads", 0))
        module, _, name = job["program"].partition(":")
        began = time.perf_counter()
        program = getattr(importlib.import_module(module), name)
        imported, memory = time.perf_counter(), peak_memory()
        library: Library = program(job)
        forget_peak_memory()  # building is not measured: weights are drawn by ours and copied
        built = time.perf_counter()
        values = [library.step()]
        first = time.perf_counter()
        values += [library.step() for _ in range(library.checked - 1)]
        answer(
            {
                "values": values,
                "import_seconds": imported - began,
                "build_seconds": built - imported,
                "first_step_seconds": first - built,
                "imported_bytes": memory,
            }
        )
        for line in sys.stdin:
            answer({"seconds": (_steps if job["read"] else _round)(library, int(line))})
        answer({"peak_bytes": peak_memory()})
    except Exception as error:
        answer({"cannot": f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"})


def _steps(library: Library, count: int) -> list[float]:
    """The seconds of each of some steps whose values are read."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        library.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def _round(library: Library, count: int) -> list[float]:
    """The seconds of a step, the mean of some that do not wait for each other."""
    library.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        library.launch()
    library.synchronize()
    return [(time.perf_counter() - began) / count]


def _stay_on(threads: int) -> None:
    """Use that many of the CPUs that the process may use: every library then takes as many threads."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory() -> int:
    """The most bytes that this process had resident."""
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak_memory() -> None:
    """Let :func:`peak_memory` begin again from what is resident now, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


# ---- in the process that compares -----------------------------------------------------------------------------------


class Worker:
    """One library in its process.

    Args:
        job: ``program`` (``module:class``), ``library`` (its name), ``read`` (whether each step waits for its value),
            and what the class wants to know.
        environment: variables of its process.
    """

    def __init__(self, job: dict[str, Any], environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, __file__, json.dumps(job)]
        self.job, self.cannot, self.first, self.closing = job, "", {}, {}
        self.rounds: list[list[float]] = []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )

    @property
    def values(self) -> list[Any]:
        """Of the first steps."""
        found: list[Any] = self.first.get("values", [])
        return found

    def start(self) -> None:
        """Wait until it has taken its first steps."""
        self.first = self._read()

    def round(self, steps: int) -> None:
        """Time some steps."""
        assert self.process.stdin is not None
        try:
            print(steps, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.cannot = "its process ended"
            return
        if seconds := self._read().get("seconds"):
            self.rounds.append(seconds)

    def end(self) -> None:
        """Let the process end, and wait for it."""
        left = self.process.communicate()[0].splitlines()
        self.closing = json.loads(left[-1]) if left else {}

    def record(self) -> dict[str, Any]:
        """What goes into the JSON file."""
        found = {**self.job, **self.first, **self.closing, "seconds": self.rounds, "cannot": self.cannot or None}
        return found if self.cannot or not self.rounds else found | statistics_of(self.rounds)

    def _read(self) -> dict[str, Any]:
        """Its next answer; a process that died or failed says why in ``cannot``."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"cannot": f"its process ended with status {self.process.wait()}"}
        self.cannot = answer.pop("cannot", "")
        return answer


def statistics_of(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Median and minimum of all steps; quiet: the median of the medians of the quietest third of the rounds."""
    steps = [s for seconds in rounds for s in seconds]
    medians = sorted(statistics.median(seconds) for seconds in rounds)
    quiet = statistics.median(medians[: -(-len(medians) // 3)])
    return {"median": statistics.median(steps), "quiet": quiet, "minimum": min(steps)}


def compare(
    jobs: Sequence[dict[str, Any]],
    *,
    rounds: int,
    steps: int = 0,
    seconds: float = 0.0,
    limit: float,
    environment: Mapping[str, str] | None = None,
    alike: bool = True,
) -> list[dict[str, Any]]:
    """Records of libraries that take turns, one round of steps each; the first round is not counted.

    Args:
        jobs: of the workers, which start one after the other.
        rounds: that count.
        steps: of a round; 0 takes as many as last about ``seconds``.
        seconds: of a round.
        limit: how far the values of the first steps may be from those of the first library; who is farther is not
            timed.
        environment: variables of the processes.
        alike: whether the values are to be compared.
    """
    workers: list[Worker] = []
    try:
        for job in jobs:
            workers.append(Worker(job, environment))
            workers[-1].start()
        if alike:
            check_values(workers, limit)
        for _ in range(1 + rounds):
            for worker in workers:
                if not worker.cannot:
                    worker.round(steps or _count(worker.rounds, seconds))
        for worker in workers:
            del worker.rounds[:1]
    finally:
        for worker in workers:
            worker.end()
    return [worker.record() for worker in workers]


def _count(rounds: Sequence[Sequence[float]], seconds: float) -> int:
    """The steps that last so many seconds, by the round before; the first round is one step."""
    return max(1, round(seconds / statistics.median(rounds[-1]))) if rounds else 1


def check_values(workers: Sequence[Worker], limit: float) -> None:
    """Whoever has other values than the first is not timed."""
    import numpy as np

    from xpformer.analysis.measure import equal

    able = [worker for worker in workers if not worker.cannot]
    for worker in able[1:]:
        what = "losses" if limit else "tokens"
        measure = equal(what, np.array(worker.values), np.array(able[0].values), limit)
        if not measure.ok:
            worker.cannot = f"its {what} are not those of {able[0].job['library']}: {measure}"


if __name__ == "__main__":
    # not the folder of this file: its modules have the names of others
    sys.path[0] = str(ROOT)
    serve(json.loads(sys.argv[1]))
