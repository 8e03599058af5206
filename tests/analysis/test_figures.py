from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xpformer.analysis import figures
from xpformer.analysis.figures import (
    compared_losses,
    confusion_figure,
    misclassified_grid,
    predictions_grid,
    training_curves,
)
from xpformer.data.images import ImageSet
from xpformer.errors import ConfigError, DataError
from xpformer.training.metrics import Evaluation, confusion_matrix

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

ORANGE, RED = np.array([230, 159, 0]), np.array([213, 94, 0])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def near(picture: np.ndarray, colour: np.ndarray) -> int:
    """How many pixels have that colour."""
    return int((np.abs(picture.astype(int) - colour).max(axis=-1) <= 2).sum())


def log(steps: int = 60, *, best: bool = True, scale: float = 1.0) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for i in range(1, steps + 1):
        loss, right = scale * 2.3 / i, 1 - 0.9 / i
        values = {"loss": loss, "accuracy": right}
        records.append({"event": "step", "step": i, **values, "lr": 1e-3 / i, "norm": 1.0 + i % 3})
        if i % 10 == 0:
            more = {"split": "validation", "best": best and i <= 40, "confusion": [[90, 10], [5, 95]]}
            records.append({"event": "evaluation", "step": i, **values, **more})
    return [*records, {"event": "end", "step": steps, "reason": "done"}]


def evaluated(classes: int, count: int = 60, wrong: float = 0.2) -> tuple[ImageSet, Evaluation]:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, count)
    predictions = np.where(random.random(count) < wrong, (labels + 1) % classes, labels)
    probabilities = random.random((count, classes)) / (2 * classes) + np.eye(classes)[predictions]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names = tuple(f"class {i}" for i in range(classes))
    images = ImageSet(random.integers(0, 256, (count, 1, 6, 6)).astype(np.uint8), labels, names)
    confusion = confusion_matrix(labels, predictions, classes)
    return images, Evaluation("test", 0.1, confusion, names, predictions, probabilities)


def test_training_curves(tmp_path: Path) -> None:
    path = training_curves(log(), tmp_path / "figures" / "curves.png", title="run")
    picture = pixels(path)
    assert picture.shape == (960, 1500, 3)
    assert near(picture, ORANGE) > 500, "the validation curves"
    assert near(picture[480:], ORANGE) == 0, "validation has no learning rate and no norm"
    other = pixels(training_curves(log(scale=0.5), tmp_path / "other.png", title="run"))
    left, right = slice(0, 740), slice(760, None)
    assert (picture[:480, left] != other[:480, left]).any()
    np.testing.assert_array_equal(picture[500:, right], other[500:, right])


def test_the_best_step_is_marked(tmp_path: Path) -> None:
    marked = pixels(training_curves(log(), tmp_path / "marked.png"))
    plain = pixels(training_curves(log(best=False), tmp_path / "plain.png"))
    assert (marked != plain).any(axis=(1, 2)).sum() > 400, "a line through all panels"


@pytest.mark.parametrize(
    "records",
    [
        log(1),
        [{"event": "step", "step": 1, "loss": "nan", "accuracy": 0.0, "lr": 0.0, "norm": "inf"}],
        [{"event": "evaluation", "step": 5, "split": "validation", "loss": 0.1, "accuracy": 1.0, "best": True}],
    ],
)
def test_short_and_broken_logs_are_drawn(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert pixels(training_curves(records, tmp_path / "curves.png")).std() > 1


def test_an_empty_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        training_curves([{"event": "end", "step": 0, "reason": "stopped"}], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_losses_of_several_runs(tmp_path: Path) -> None:
    logs = {f"run {i}": log(scale=1 / i) for i in (1, 2, 3)}
    picture = pixels(compared_losses(logs, tmp_path / "losses.png"))
    assert near(picture, np.array([68, 1, 84])) > 200  # the first of viridis
    assert near(pixels(compared_losses({"one": log()}, tmp_path / "one.png")), np.array([68, 1, 84])) > 200
    with pytest.raises(DataError, match="nothing to draw of early, its log holds no evaluation"):
        compared_losses({"early": log(steps=3)}, tmp_path / "none.png")


def test_smoothing_keeps_a_constant_and_leaves_out_what_is_not_finite() -> None:
    y = np.full(200, 3.0)
    y[70] = np.nan
    np.testing.assert_allclose(figures._smooth(y), 3.0)
    ramp = np.arange(200.0)
    np.testing.assert_allclose(figures._smooth(ramp)[10:-10], ramp[10:-10])


@pytest.mark.parametrize("classes", [2, 12, 30])
def test_confusion_figure(classes: int, tmp_path: Path) -> None:
    images, evaluation = evaluated(classes, 20 * classes)
    picture = pixels(confusion_figure(evaluation, tmp_path / "confusion.png"))
    assert picture.shape[1] == 1500
    assert picture.shape[0] in (1155, 1245)
    assert near(picture, RED) > 1000, "mistakes"
    labels = images.labels
    perfect = Evaluation(
        "test", 0.0, confusion_matrix(labels, labels, classes), evaluation.classes, labels, evaluation.probabilities
    )
    assert near(pixels(confusion_figure(perfect, tmp_path / "perfect.png")), RED) == 0


def test_predictions_grid_frames_what_is_wrong(tmp_path: Path) -> None:
    images, evaluation = evaluated(3, 12)
    arguments = (images.images, evaluation.probabilities)
    known = predictions_grid(*arguments, images.labels, images.classes, tmp_path / "known.png", title="test")
    unknown = predictions_grid(*arguments, None, images.classes, tmp_path / "unknown.png", title="test")
    assert (images.labels != evaluation.predictions).any()
    assert near(pixels(known), RED) > 500
    assert near(pixels(unknown), RED) == 0


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (2, 3), (7, 3), (19, 1)])
def test_predictions_grid_of_any_size(count: int, channels: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.random((count, channels, 8, 8))
    names = [f"folder/a_rather_long_name_{i}.png" for i in range(count)]
    path = predictions_grid(
        images, np.full((count, 2), 0.5), None, ("yes", "a class of long name"), tmp_path / "grid.png", captions=names
    )
    picture = pixels(path)
    assert 500 <= picture.shape[1] <= 1500
    assert picture.std() > 30


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_other_channels_are_shown_by_their_mean(channels: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, channels, 8, 8)).astype(np.uint8)
    drawn = []
    for name, shown in ("all", images), ("mean", images.mean(axis=1, keepdims=True) / 255):
        path = predictions_grid(shown, np.full((1, 2), 0.5), None, ("yes", "no"), tmp_path / f"{name}.png")
        drawn.append(pixels(path))
    np.testing.assert_array_equal(*drawn)


def test_predictions_grid_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        predictions_grid(np.zeros((0, 1, 4, 4)), np.zeros((0, 2)), None, ("a", "b"), tmp_path / "grid.png")


def test_misclassified_grid_shows_the_worst_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, evaluation = evaluated(4, 80, wrong=0.4)
    shown: list[dict[str, Any]] = []
    draw = predictions_grid

    def record(pictures: Any, probabilities: Any, labels: Any, *args: Any, **options: Any) -> Path:
        shown.append({"labels": labels, "probabilities": probabilities, **options})
        return draw(pictures, probabilities, labels, *args, **options)

    monkeypatch.setattr(figures, "predictions_grid", record)
    path = misclassified_grid(images, evaluation, tmp_path / "wrong.png", count=9)
    assert near(pixels(path), RED) > 500
    (call,) = shown
    truth = call["probabilities"][np.arange(9), call["labels"]]
    assert (np.diff(truth) >= 0).all()
    wrong = int((images.labels != evaluation.predictions).sum())
    assert call["title"] == f"test: {wrong} of 80 wrong, the 9 with the largest loss"
    for caption, label in zip(call["captions"], call["labels"], strict=True):
        assert images.labels[int(caption.split()[1])] == label


def test_misclassified_grid_without_mistakes(tmp_path: Path) -> None:
    images, evaluation = evaluated(4, 20, wrong=0.0)
    assert pixels(misclassified_grid(images, evaluation, tmp_path / "none.png")).std() > 1
    with pytest.raises(DataError, match="19 images"):
        misclassified_grid(images.take(np.arange(19)), evaluation, tmp_path / "other.png")


@pytest.mark.parametrize(
    ("p", "expected"), [(1.0, "100 %"), (0.99997, ">99.9 %"), (0.9987, "99.9 %"), (0.9, "90.0 %"), (0.514, "51 %")]
)
def test_shares(p: float, expected: str) -> None:
    assert figures._share(p) == expected


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r'pip install "xpformer\[recipes\]"'):
        training_curves(log(), tmp_path / "curves.png")


def test_the_global_state_of_matplotlib_is_left_alone(tmp_path: Path) -> None:
    import sys

    import matplotlib as mpl

    before = mpl.rcParams.copy()
    training_curves(log(3), tmp_path / "curves.png")
    assert mpl.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules
