from __future__ import annotations

from typing import NamedTuple

import pytest

from xpformer.analysis import tree


class Row(NamedTuple):
    path: str
    kind: str = ""


def folded(*rows: Row) -> list[list[str]]:
    return [[row.path for row in line] for line in tree.fold(rows, lambda row: row.kind)]


def test_equal_blocks_become_one_line_for_all() -> None:
    rows = [Row(""), *(Row(f"blocks.{i}{p}", "b") for i in range(3) for p in ("", ".norm")), Row("norm", "n")]
    assert folded(*rows) == [
        [""],
        ["blocks.0", "blocks.1", "blocks.2"],
        ["blocks.0.norm", "blocks.1.norm", "blocks.2.norm"],
        ["norm"],
    ]


def test_another_block_begins_another_line() -> None:
    rows = [
        Row("blocks.0", "a"),
        Row("blocks.1", "b"),
        Row("blocks.2", "b"),
        Row("blocks.3", "a"),
        Row("others.0", "a"),
    ]
    assert folded(*rows) == [["blocks.0"], ["blocks.1", "blocks.2"], ["blocks.3"], ["others.0"]]


def test_blocks_with_other_layers_inside_are_not_equal() -> None:
    rows = [Row("a.0"), Row("a.0.x"), Row("a.1"), Row("a.1.y"), Row("a.2"), Row("a.2.y"), Row("a.10"), Row("a.10.y")]
    assert folded(*rows) == [["a.0"], ["a.0.x"], ["a.1", "a.2", "a.10"], ["a.1.y", "a.2.y", "a.10.y"]]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["norm"], "norm"),
        (["blocks.3"], "blocks.3"),
        (["blocks.0", "blocks.11"], "blocks.0-11"),
        (["a.0.b", "a.1.b"], "b"),
    ],
)
def test_names(paths: list[str], expected: str) -> None:
    assert tree.name([Row(path) for path in paths]) == expected


def test_totals_are_of_all_below_and_lists_are_no_layers() -> None:
    own = {"": 1, "blocks.0": 10, "blocks.0.norm": 100, "blocks.1": 1000}
    assert tree.totals(own, 0) == {"": 1111, "blocks.0": 110, "blocks.0.norm": 100, "blocks.1": 1000}


def test_guides_draw_the_tree() -> None:
    paths = ["", "a", "a.0", "b.0", "b.0.c", "b.0.d"]
    assert [tree.depth(path) for path in paths] == [0, 1, 1, 1, 2, 2]
    assert tree.guides(paths) == ["", "├ ", "├ ", "└ ", "  ├ ", "  └ "]


@pytest.mark.parametrize(
    ("value", "base", "unit", "expected"),
    [
        (0, 1000, "", ""),
        (7, 1024, "iB", "7 B"),
        (1536, 1024, "iB", "1.50 KiB"),
        (13.34e9, 1000, "", "13.3 G"),
        (999.6e9, 1000, "FLOP", "1.00 TFLOP"),
    ],
)
def test_scaled(value: float, base: int, unit: str, expected: str) -> None:
    assert tree.scaled(value, base, unit) == expected
