"""Die, or fail, at the k-th change to the file system; and the checkpoints that the fault tests make.

Run as a script, ``faults.py SCENARIO TEMPLATE WORK`` copies TEMPLATE to WORK/0, WORK/1, ... and kills a child process
in copy k at its k-th change, until a child gets through; ``faults.py loop DIRECTORY`` saves until it is killed.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xpformer.rng import host_generator
from xpformer.training import checkpoint, fs

FILES = ["MANIFEST.json", "config.json", "model.safetensors", "optimizer.safetensors", "state.json"]
"""Of a checkpoint."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def content(step: int, variant: int = 0, size: int = 12) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, object]]:
    """Tensors and documents that are a function of the step."""
    draw = host_generator(step, "content", variant)
    weights = {"head.weight": draw.normal(size=(size, 5)).astype(np.float32), "head.bias": draw.normal(size=5)}
    moments = {f"m.{name}": draw.normal(size=value.shape) for name, value in weights.items()}
    documents: dict[str, object] = {"config.json": {"dim": size}, "state.json": {"step": step, "seed": 2**63 + variant}}
    return {"model": weights, "optimizer": moments}, documents


def save(directory: Path, step: int, *, variant: int = 0, keep: int = 3, best: bool = False, size: int = 12) -> Path:
    tensors, documents = content(step, variant, size)
    return checkpoint.save(directory, step, tensors=tensors, documents=documents, keep=keep, best=best)


def same(found: checkpoint.Checkpoint, step: int, variant: int = 0, size: int = 12) -> bool:
    tensors, documents = content(step, variant, size)
    return (
        found.step == step
        and found.documents == documents
        and {g: sorted(t) for g, t in found.tensors.items()} == {g: sorted(t) for g, t in tensors.items()}
        and all(
            np.array_equal(found.tensors[g][n], a) and found.tensors[g][n].dtype == a.dtype
            for g, t in tensors.items()
            for n, a in t.items()
        )
    )


def template(directory: Path) -> None:
    """Checkpoints 10, 20 and 30; the best is 10."""
    for step in (10, 20, 30):
        save(directory, step, best=step == 10)


SCENARIOS: dict[str, Callable[[Path], object]] = {
    "next": lambda directory: save(directory, 40, keep=2),
    "best": lambda directory: save(directory, 40, keep=2, best=True),
    "again": lambda directory: save(directory, 30, keep=2, best=True),
    "replace": lambda directory: save(directory, 30, variant=1, keep=2, best=True),
    "first": lambda directory: save(directory / "new" / "checkpoints", 1, best=True),
}


class Faults:
    """A replacement of ``fs._call`` that notes each change and does ``fault`` at the k-th, or from it on.

    It notes fsyncs and skips them: nothing here can tell whether one happened, and they take most of the time.
    """

    def __init__(self, k: int = -1, fault: Callable[[str, tuple[object, ...]], None] | None = None, on: bool = False):
        self.k, self.fault, self.on = k, fault, on
        self.calls: list[tuple[str, str]] = []
        self._paths: dict[int, str] = {}

    def __call__(self, name, function, *args, **kwargs):  # type: ignore[no-untyped-def]
        place = self._paths.get(args[0]) if isinstance(args[0], int) else Path(args[0]).name
        if name == "symlink":
            place = Path(args[1]).name
        if name == "fsync_directory":
            place = Path(f"/proc/self/fd/{args[0]}").readlink().name if sys.platform == "linux" else "?"
        self.calls.append((name, str(place)))
        count = len(self.calls) - 1
        if self.fault is not None and (count == self.k or (self.on and count > self.k)):
            self.fault(name, args)
        if name.startswith("fsync"):
            return None
        result = function(*args, **kwargs)
        if name == "open":
            self._paths[result] = str(place)
        return result


def kill(name: str, args: tuple[object, ...]) -> None:
    """kill -9, after half of the bytes if the change is a write."""
    if name == "write":
        descriptor, data = args
        os.write(descriptor, data[: len(data) // 2])  # type: ignore[arg-type,index]
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full(name: str, args: tuple[object, ...]) -> None:
    """ENOSPC, after half of the bytes if the change is a write."""
    if name == "write":
        descriptor, data = args
        os.write(descriptor, data[: len(data) // 2])  # type: ignore[arg-type,index]
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def kill_everywhere(scenario: str, source: Path, work: Path) -> int:
    """Kill at every change; the number of changes."""
    k = 0
    while True:
        copy = work / str(k)
        shutil.copytree(source, copy, symlinks=True)
        child = os.fork()
        if child == 0:
            fs._call = Faults(k, kill)
            SCENARIOS[scenario](copy)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return k
        k += 1


if __name__ == "__main__":
    fs._call = Faults()
    if sys.argv[1] == "loop":
        directory = Path(sys.argv[2])
        print("ready", flush=True)
        for line in sys.stdin:  # a round each: a child that is killed after so many milliseconds
            step = checkpoint.newest(directory)[0].step
            child = os.fork()
            if child == 0:
                while True:
                    step += 1
                    save(directory, step, best=step % 3 == 0, size=1000)
            time.sleep(float(line) / 1000)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            print("killed", flush=True)
    else:
        print(kill_everywhere(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
