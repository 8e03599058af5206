"""What was measured as a table, in plain text or Markdown, and as a picture; all from the JSON document alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from xpformer.analysis.drawing import BLUE, GREY, INK, LIGHT, ORANGE, new_figure, save_figure
from xpformer.errors import DataError

STATISTICS = ("median", "quiet", "minimum")
BASELINES = {"eager": "to SDPA", "manual": "to manual"}
SKY, BROWN = "#8FC7E8", "#B79A6A"
COLOURS = {"portable": SKY, "numpy": BLUE, "fast": "#004C78", "eager": ORANGE, "manual": ORANGE, "compile": ORANGE}
"""Of the bars; others are brown."""
_SHOWN = 2.0  # longer bars are cut off
_MEGA = 1e6


def with_ratios(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of one comparison, each with its ratios to both eager variants that were timed."""
    timed = {record["library"]: record for record in records if "median" in record}
    return [
        record
        | {
            "ratios": {
                other: {s: record[s] / timed[other][s] for s in STATISTICS} for other in BASELINES if other in timed
            }
        }
        if "median" in record
        else record
        for record in records
    ]


# ---- tables ---------------------------------------------------------------------------------------------------------


def table(document: Mapping[str, Any], by: str = "median", *, markdown: bool = False) -> list[str]:
    """A line for each library of each workload; ratios and share of the floor are those of the statistic ``by``."""
    head = ["workload", "library", "median ms", "quiet ms", "min ms", *BASELINES.values(), "of floor"]
    head += ["peak MB", "own MB", "import s", "first s"]
    rows = [head]
    for record in document["measurements"]:
        rows.append([record["workload"], record["label"]])
        if "median" not in record:
            rows[-1].append(f"cannot run: {record['cannot']}")
            continue
        peak, floor = record["peak_bytes"], floor_seconds(document, record["workload"])
        rows[-1] += [
            *(_milliseconds(record[s]) for s in STATISTICS),
            *(_ratio(record, other, by) for other in BASELINES),
            f"{floor / record[by]:.0%}",
            f"{peak / _MEGA:,.0f}",
            f"{(peak - record['imported_bytes']) / _MEGA:,.0f}",
            f"{record['import_seconds']:.1f}",
            f"{record['first_step_seconds']:.2f}",
        ]
    lines = _lines(rows, markdown=markdown)
    for name, work in document["workloads"].items():
        floor = _milliseconds(floor_seconds(document, name))
        lines.append(f"{'- ' * markdown}{name}: {work['about']}; the floor is {floor} ms")
        if work["quoted"]:
            lines.append(f"{'- ' * markdown}{name}, quoted and not measured here: {work['quoted']}")
    return lines


def floor_seconds(document: Mapping[str, Any], workload: str) -> float:
    """What the FLOPs of a step, or the bytes that a text reads, take at the best rate of this machine."""
    work, rates = document["workloads"][workload], document["per_second"]
    return float(sum(work[what] / rates[what] for what in rates if what in work))


def scaling(document: Mapping[str, Any], *, markdown: bool = False) -> list[str]:
    """What a step costs over batch and tokens, and what the last doubling does; nothing if that was not measured."""
    records = [record for record in document["scaling"] if "median" in record]
    if not records:
        return [f"scaling: {r['label']} cannot run: {r['cannot']}" for r in document["scaling"]]
    rows, grows = [["series", "library", "batch", "tokens", "ms", "µs a sample", "µs a token", "peak MB"]], []
    for (series, label), group in groupby(records, lambda r: (r["series"], r["label"])):
        points = list(group)
        for record in points:
            batch, tokens, seconds = record["work"]["batch"], record["work"]["tokens"], record["median"]
            each = [f"{1e6 * seconds / batch:,.1f}", f"{1e6 * seconds / batch / tokens:.2f}"]
            peak = f"{record['peak_bytes'] / _MEGA:,.0f}"
            rows.append([series, label, str(batch), str(tokens), _milliseconds(seconds), *each, peak])
        *_, last, double = points
        axis = "batch" if last["work"]["batch"] != double["work"]["batch"] else "tokens"
        sizes = f"from {last['work'][axis]} to {double['work'][axis]}"
        times = f"{double['median'] / last['median']:.2f} times the time"
        grows.append(f"{'- ' * markdown}{series}, {label}: {axis} {sizes} is {times}")
    return [*_lines(rows, markdown=markdown), *grows]


def _milliseconds(seconds: float) -> str:
    """Four digits or so."""
    return f"{1e3 * seconds:,.{max(0, 3 - len(str(int(1e3 * seconds))))}f}"


def _ratio(record: Mapping[str, Any], other: str, by: str) -> str:
    return f"{record['ratios'][other][by]:.2f}" if other in record["ratios"] else "-"


def _lines(rows: Sequence[Sequence[str]], *, markdown: bool) -> list[str]:
    """Rows of cells, the first the head; a row that is too short ends in a sentence."""
    length, words = len(rows[0]), 2  # the columns of words stand left, those of numbers right
    if markdown:
        rule = ["---"] * words + ["---:"] * (length - words)
        return ["| " + " | ".join([*row, *[""] * (length - len(row))]) + " |" for row in (rows[0], rule, *rows[1:])]
    full = [row for row in rows if len(row) == length]
    widths = [max(len(row[i]) for row in full) for i in range(length)]
    widths[:words] = [max(len(row[i]) for row in rows) for i in range(words)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells if len(row) == length else [*cells[:words], *row[words:]]).rstrip())
    return lines


# ---- the picture ----------------------------------------------------------------------------------------------------


def figure(document: Mapping[str, Any], path: Path, by: str = "median") -> Path:
    """The time of each library, PyTorch's eager one being 1: a panel for each workload, shorter bars being faster."""
    groups = {name: [r for r in document["measurements"] if r["workload"] == name] for name in document["workloads"]}
    groups = {n: found for n, rs in groups.items() if (found := [r for r in rs if "eager" in r.get("ratios", {})])}
    if not groups:
        raise DataError("there is no workload in which PyTorch eager was timed, so there is nothing to draw")
    rows = math.ceil(len(groups) / 2)
    tallest = max(len(records) for records in groups.values())
    height = 0.9 + rows * (0.7 + 0.24 * tallest)
    picture = new_figure(10, height, "Time of a step; PyTorch eager with SDPA is 1\n")  # a line is for what follows
    where = f"{document['cpu']}, {document['threads']} threads, float32, {document['started'][:10]}"
    picture.text(0.011, 1 - 0.36 / height, f"{where}; shorter is faster", fontsize=10, color=GREY, va="top")
    panels = list(picture.subplots(rows, min(2, len(groups)), squeeze=False).flat)
    for axes, (name, records) in zip(panels, groups.items(), strict=False):
        _panel(axes, f"{name}  {document['workloads'][name]['about']}", records, by)
        axes.set_ylim(tallest - 0.5, -0.6)  # bars of all panels are equally thick
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    return save_figure(picture, path)


def _panel(axes: Any, title: str, records: Sequence[Mapping[str, Any]], by: str) -> None:
    """Bars from above to below in the order of the records."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    for y, record in enumerate(records):
        ratio = record["ratios"]["eager"][by]
        axes.barh(y, min(ratio, _SHOWN), height=0.72, color=COLOURS.get(record["library"], BROWN))
        bold = "bold" if record["library"] in ("numpy", "fast") else "normal"
        text = f"{ratio:.2f}{' →' * (ratio > _SHOWN)}"
        look = {"va": "center", "fontsize": 9, "color": INK, "fontweight": bold}
        axes.text(min(ratio, _SHOWN) + 0.02, y, text, bbox={"color": "white", "pad": 1.2}, **look)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=2)
    axes.set_yticks(range(len(records)), [record["label"] for record in records], fontsize=9, color=INK)
    axes.set_xlim(0, _SHOWN + 0.3)
    axes.set_xticks([0, 0.5, 1, 1.5, 2], ["0", "0.5", "1", "1.5", "2"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="x", color=LIGHT, linewidth=0.7)
    axes.set_axisbelow(True)


# ---- documents ------------------------------------------------------------------------------------------------------


def read(paths: Sequence[Path]) -> dict[str, Any]:
    """One document of several, of one machine; the later ones replace what the earlier ones have.

    Raises:
        DataError: naming the file that cannot be read or is of another machine.
    """
    whole: dict[str, Any] = {}
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            names = set(document["workloads"]) | {r["workload"] for r in document["measurements"]}
            machine = _machine(document)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is no result of benchmarks/cpu.py: {type(error).__name__}: {error}") from error
        if whole and any(machine[key] != known for key, known in _machine(whole).items() if key in machine):
            raise DataError(f"{path}: was measured on {machine}, {paths[0]} on {_machine(whole)}")
        kept = [r for r in whole.get("measurements", []) if r["workload"] not in names]
        whole = {
            **whole,
            **document,
            "workloads": dict(sorted((whole.get("workloads", {}) | document["workloads"]).items())),
            "measurements": sorted(kept + document["measurements"], key=lambda r: r["workload"]),
            "scaling": document.get("scaling") or whole.get("scaling", []),
        }
    return whole


def _machine(document: Mapping[str, Any]) -> dict[str, Any]:
    """Processor, threads and, in all but old documents, whose kernels BLAS takes."""
    return {key: document[key] for key in ("cpu", "threads", "kernels") if key in document or key != "kernels"}


def startup(seconds: Sequence[float]) -> str:
    """How long ``xpformer --help`` takes."""
    return (
        f"xpformer --help: {statistics.median(seconds):.2f} s (median of {len(seconds)}, fastest {min(seconds):.2f} s)"
    )
