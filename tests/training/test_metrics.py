"""Metrics against scikit-learn, empty classes included."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from xpformer.training.metrics import ClassMetrics, Evaluation, confusion_matrix

sklearn = pytest.importorskip("sklearn.metrics")


def evaluation(targets: np.ndarray, predictions: np.ndarray, classes: int) -> Evaluation:
    return Evaluation(
        "validation",
        0.5,
        confusion_matrix(targets, predictions, classes),
        tuple(f"c{i}" for i in range(classes)),
        predictions,
        np.eye(classes)[predictions],
    )


def draw(rng: np.random.Generator, case: str) -> tuple[np.ndarray, np.ndarray, int]:
    targets, predictions = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    right = rng.random(200) < 0.6
    predictions[right] = targets[right]
    if case == "never predicted":
        predictions[predictions == 2] = 3
    if case == "never there":
        targets[targets == 5] = 0
    if case == "neither":
        targets[targets == 4] = 0
        predictions[predictions == 4] = 1
    if case == "always right":
        predictions = targets.copy()
    if case == "always wrong":
        predictions = (targets + 1) % 6
    if case == "one sample":
        targets, predictions = targets[:1], predictions[:1]
    return targets, predictions, 6


CASES = ("usual", "never predicted", "never there", "neither", "always right", "always wrong", "one sample")


@pytest.mark.parametrize("case", CASES)
def test_against_scikit_learn(rng: np.random.Generator, case: str) -> None:
    targets, predictions, classes = draw(rng, case)
    found = evaluation(targets, predictions, classes)
    labels = list(range(classes))
    assert np.array_equal(found.confusion, sklearn.confusion_matrix(targets, predictions, labels=labels))
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(targets, predictions), abs=1e-15)
    assert found.count == len(targets)
    expected = sklearn.precision_recall_fscore_support(targets, predictions, labels=labels, zero_division=np.nan)
    rows = found.per_class()
    assert [r.name for r in rows] == list(found.classes)
    for i, name in enumerate(("precision", "recall", "f1", "support")):
        ours = [getattr(r, name) for r in rows]
        assert np.allclose(ours, expected[i], rtol=1e-12, atol=0, equal_nan=True), name
    if case == "neither":
        assert all(math.isnan(x) for x in rows[4][1:4])
        assert rows[4].support == 0


def test_confusion_rows_are_the_truth() -> None:
    confusion = confusion_matrix(np.array([0, 0, 1]), np.array([2, 2, 1]), 3)
    assert confusion.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]
    assert confusion_matrix(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 2).tolist() == [[0, 0], [0, 0]]


def test_summary_is_what_a_program_reads(rng: np.random.Generator) -> None:
    found = evaluation(*draw(rng, "usual"))
    summary = found.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["accuracy"] == found.accuracy
    assert summary["classes"][0] == found.per_class()[0]._asdict()  # type: ignore[index]
    assert list(ClassMetrics._fields) == ["name", "precision", "recall", "f1", "support"]
    assert evaluation(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 2).accuracy == 0
