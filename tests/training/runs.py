"""A small recipe, the runs made of it, and how two runs are compared."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xpformer.analysis.measure import BACKENDS, difference, equal, magnitude
from xpformer.training import checkpoint
from xpformer.training.log import Log
from xpformer.training.run import Run
from xpformer.training.session import Options, Reporter, Session, start

ROOT = Path(__file__).parents[2]

STEPS = ("steps=6", "evaluate_every=3", "checkpoint_every=0")
"""Settings of a short run."""

RECIPE = '''"""Three classes of 6x6 images, a bright band each: 96 to train, 30 to choose, 24 to test."""

import numpy as np

from xpformer.data import Augmentation, ImageData
from xpformer.data.images import ImageSet
from xpformer.models.vit import ViTConfig
from xpformer.rng import host_generator
from xpformer.training import DataConfig, Recipe, Settings, TrainConfig


def images(count, stream):
    draw = host_generator(5, stream)
    labels = draw.integers(0, 3, count)
    pixels = draw.integers(0, 160, (count, 1, 6, 6))
    for image, label in zip(pixels, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 60
    return ImageSet(pixels.astype(np.uint8), labels.astype(np.int64), ("top", "middle", "bottom"))


def load(folder, validation, seed):
    test = "test" if folder is None else folder.name
    return ImageData("bands", images(96, "train"), images(validation, "validation"), images(24, test), (0.4,), (0.2,))


def recipe():
    model = ViTConfig.preset("tiny", depth=1, dropout=0.1, attention_dropout=0.1, drop_path=0.1)
    train = TrainConfig(
        steps=40, batch_size=9, lr=3e-3, warmup_steps=5, weight_decay=0.05, clip=1.0, ema=0.9, label_smoothing=0.1,
        evaluate_every=8, checkpoint_every=5, accumulate=2,
    )
    settings = Settings(model, train, Augmentation(shift=1, rotate=5, erase=0.2), DataConfig(30))
    return Recipe("bands", "bands", {"tiny": settings}, "tiny", load)
'''


def recipe_file(folder: Path, text: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bands.py"
    path.write_text(text, encoding="utf-8")
    return path


def begin(folder: Path, *changes: str, name: str = "run", text: str = RECIPE, **options: Any) -> Session:
    """A new run of the small recipe in ``folder / name``."""
    options = {"threads": 1, "out": folder / name, **options}
    return start(str(recipe_file(folder, text)), Options(**options), changes=changes)


def begin_and_stop(folder: Path) -> Session:
    session = begin(folder, *STEPS, name="stopped")
    session.train(max_steps=0)
    return session


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def records(run: Run, *events: str) -> list[dict[str, object]]:
    """The log's records of these events, without what a clock measured."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in Log.read(run.log_path) if r["event"] in events]


def outcome(run: Run) -> dict[str, Any]:
    """All that two equal runs share: every stored bit of the newest checkpoint, the best, and the logged numbers."""
    newest, warnings = checkpoint.newest(run.checkpoints)
    assert not warnings
    best = checkpoint.best(run.checkpoints)
    arrays = {f"{g}/{n}": (a.dtype.name, a.tobytes()) for g, t in newest.tensors.items() for n, a in t.items()}
    return {
        "step": newest.step,
        "arrays": arrays,
        "documents": newest.documents,
        "best": (best.step, {n: a.tobytes() for n, a in best.tensors["model"].items()}),
        "log": records(run, "step", "evaluation"),
    }


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Where two outcomes differ, in words."""
    first, second = a["arrays"], b["arrays"]
    found = [f"array {k}" for k in sorted(first.keys() | second.keys()) if first.get(k) != second.get(k)]
    found += [key for key in ("step", "documents", "best") if a[key] != b[key]]
    found += [f"log: {x} against {y}" for x, y in zip(a["log"], b["log"], strict=False) if x != y][:3]
    return found + ([] if len(a["log"]) == len(b["log"]) else [f"{len(a['log'])} and {len(b['log'])} records"])


def kill_at(run: Path, step: int, before: Callable[[int], None] = lambda process: None) -> None:
    """Go on with ``run`` in a process that kill -9 ends behind ``step``; ``before`` is called with its number."""
    code = (
        "import sys, time; from pathlib import Path; from tests.training.faults import Faults;"
        "from xpformer.training import fs; from xpformer.training.session import resume;"
        "from tests.training.runs import Watch;"
        "fs._call = Faults(); stop = lambda: (print('now', flush=True), time.sleep(60));"
        "resume(Path(sys.argv[1]))[0].train(Watch('stepped', int(sys.argv[2]), stop))"
    )
    command = [sys.executable, "-c", code, str(run), str(step)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        before(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL


class Watch(Reporter):
    """Remembers what happened, and does something at one event."""

    def __init__(self, event: str = "", step: int = -1, action: Any = None) -> None:
        self.event, self.step, self.action = event, step, action
        self.seen: list[tuple[str, int]] = []

    def _note(self, event: str, session: Session) -> None:
        self.seen.append((event, session.progress.step))
        if (event, session.progress.step) == (self.event, self.step):
            self.action()

    def stepped(self, session: Session, result: Any) -> None:
        self._note("stepped", session)

    def evaluated(self, session: Session, evaluation: Any, *, best: bool) -> None:
        self._note("evaluated", session)

    def saved(self, session: Session, path: Path) -> None:
        self._note("saved", session)


def weights(session: Session) -> dict[str, np.ndarray]:
    return session.trainer.model.state()


def same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def equal_weights(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], reach: float) -> None:
    """Weights after float64 steps on two ways; ``reach`` is the learning rate times the steps."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        got = found[name]
        if name.endswith("qkv.bias"):  # the key's has no gradient but rounding, which Adam divides by eps = 1e-8
            (query, key, own), (q, k, v) = np.split(got, 3), np.split(value, 3)
            assert difference(key, k) <= 1e-9 * reach, name
            got, value = np.concatenate([query, own]), np.concatenate([q, v])
        assert equal(name, got, value, BACKENDS, scale=max(magnitude(value), reach)).ok, name
