from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType

from xpformer.analysis.tables import confusion_table, confusions, per_class_table, write_csv
from xpformer.errors import RunError
from xpformer.training.metrics import Evaluation


def evaluation(confusion: list[list[int]], classes: tuple[str, ...]) -> Evaluation:
    matrix = np.array(confusion)
    predictions = np.concatenate([np.repeat(np.arange(len(matrix)), row) for row in matrix])
    return Evaluation("validation", 0.25, matrix, classes, predictions, np.eye(len(matrix))[predictions])


def printed(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


THREE = evaluation([[8, 2, 0], [1, 9, 0], [0, 0, 0]], ("cat", "[dog]", "never seen"))


def test_per_class_table() -> None:
    lines = [line.split() for line in printed(per_class_table(THREE)).splitlines()]
    assert lines[2] == ["cat", "88.89", "80.00", "84.21", "10"]
    assert lines[3] == ["[dog]", "81.82", "90.00", "85.71", "10"]
    assert lines[4] == ["never", "seen", "–", "–", "–", "0"]
    assert lines[5] == ["mean", "85.35", "85.00", "84.96", "20"]
    assert lines[6] == ["accuracy", "85.00", "20"]


def test_of_many_classes_only_those_that_occur() -> None:
    confusion = np.zeros((101, 101), np.int64)
    confusion[3, 3], confusion[3, 50] = 2, 1
    table = per_class_table(evaluation(confusion.tolist(), tuple(map(str, range(101)))))
    assert [line.split()[0] for line in printed(table).splitlines()[2:]] == ["3", "50", "mean", "accuracy"]


def test_a_hundred_per_cent_is_all() -> None:
    nearly = evaluation([[99_999, 1], [0, 100_000]], ("a", "b"))
    assert "accuracy" in printed(per_class_table(nearly))
    assert printed(per_class_table(nearly)).splitlines()[-1].split()[1] == "99.99"
    perfect = evaluation([[3, 0], [0, 4]], ("a", "b"))
    assert printed(per_class_table(perfect)).splitlines()[-1].split()[1] == "100.00"


def test_confusion_table_shows_counts_and_dots() -> None:
    lines = [line.split() for line in printed(confusion_table(THREE)).splitlines()]
    assert lines[2] == ["cat", "8", "2", "·"]
    assert lines[3] == ["[dog]", "1", "9", "·"]


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_matrix_that_does_not_fit_becomes_the_list_of_mistakes(width: int) -> None:
    matrix = np.diag(np.full(40, 1000))
    matrix[3, 7], matrix[7, 3], matrix[0, 1] = 30, 20, 1
    wide = evaluation(matrix.tolist(), tuple(f"class {i}" for i in range(40)))
    text = printed(confusion_table(wide), width)
    assert max(map(len, text.splitlines())) <= width
    assert "51 mistakes" in text
    assert [line.split()[4] for line in text.splitlines()[2:]] == ["30", "20", "1"]
    assert "2.91" in text  # 30 of 1,030
    assert max(map(len, printed(per_class_table(wide), width).splitlines())) <= width


def test_confusions_are_sorted_and_right_ones_left_out() -> None:
    assert [(c.truth, c.predicted, c.number) for c in confusions(THREE)] == [("cat", "[dog]", 2), ("[dog]", "cat", 1)]
    assert confusions(THREE, 1)[0].share == 0.2
    perfect = evaluation(np.diag([1000] * 40).tolist(), tuple(map(str, range(40))))
    assert confusions(perfect) == []
    assert "no mistakes" in printed(confusion_table(perfect), 60)


def test_csv_holds_the_numbers_with_all_digits(tmp_path: Path) -> None:
    path = write_csv(THREE, tmp_path / "new" / "classes.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["class", "precision", "recall", "f1", "support"]
    assert [row["class"] for row in rows] == ["cat", "[dog]", "never seen", "accuracy"]
    assert float(rows[0]["precision"]) == 8 / 9
    assert rows[2] == {"class": "never seen", "precision": "", "recall": "", "f1": "", "support": "0"}
    assert [float(rows[-1][name]) for name in ("precision", "recall", "f1", "support")] == [0.85, 0.85, 0.85, 20]
    assert b"\r" not in path.read_bytes()


def test_csv_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_csv(THREE, tmp_path / "file" / "classes.csv")
