"""The picture of an agreement: errors along the depth of the model, forward then backward, its parameters, its losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpformer.analysis.agreement import ACTIVATION, BACKWARD, GRADIENT, LOSS, WEIGHT, Agreement, Place, Row
from xpformer.analysis.drawing import BLUE, GREY, INK, LIGHT, ORANGE, RED, new_figure, save_figure, style_axes

GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
SMALLEST = 1e-17
"""Where no difference at all is drawn."""
ROOM = 2.2
"""Inches that a group's name takes at most, in characters of the axis' font."""


def agreement_figure(agreement: Agreement, path: Path) -> Path:
    """Above: the error of every operation's results, then of its gradients, in the order in which they were computed.

    Below: parameters' gradients and updated weights by depth, and how far the losses of training part.  The grey area
    lies beyond the limit; where a backend is beyond it, a red ring is around the point.

    Args:
        agreement: of two or more backends.
        path: of the PNG file.
    """
    judged = agreement.judged()
    steps = any(len(agreement.losses_apart(s)) > 1 for s in agreement.backends[1:])
    against = "NumPy's float64" if agreement.dtype == "float32" else agreement.backends[0]
    figure = new_figure(10, 7.0, f"{agreement.subject}, {agreement.dtype}: errors against {against}")
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1.0))
    depth = above.subplots(1, 1)
    panels = below.subplots(1, 3 if steps else 2, width_ratios=(1, 1, 0.9)[: 3 if steps else 2])

    rows = [agreement.of(spec, LOSS, ACTIVATION, BACKWARD) for spec in judged]
    _errors(depth, judged, rows)
    _groups(depth, max(rows, key=len), room=0.012)
    turn = sum(row.place.kind == ACTIVATION for row in rows[0]) - 0.5
    depth.axvline(turn, color=GREY, linewidth=0.9)
    for x, text, side in ((turn, "forward  ", "right"), (turn, "  backward", "left")):
        place = {"xycoords": ("data", "axes fraction"), "ha": side, "va": "bottom"}
        depth.annotate(text, (x, 1.01), fontsize=9.5, color=GREY, **place)
    style_axes(depth, "operations, in the order of a step")
    for axes, kind, title in (
        (panels[0], GRADIENT, "gradients of parameters"),
        (panels[1], WEIGHT, "weights after one step"),
    ):
        rows = [agreement.of(spec, kind) for spec in judged]
        _errors(axes, judged, rows)
        _groups(axes, max(rows, key=len), room=0.03)
        style_axes(axes, title)
    if steps:
        _losses(panels[2], agreement, judged)
    depth.set_ylabel("error / scale", fontsize=10, color=INK)
    panels[0].set_ylabel("error / scale", fontsize=10, color=INK)
    figure.legend(*_legend(judged), frameon=False, fontsize=10, loc="upper right", ncols=len(judged), handlelength=1.4)
    return save_figure(figure, path)


def _errors(axes: Any, names: Sequence[str], series: Sequence[Sequence[Row]]) -> None:
    """A point for each tensor of each backend, the limits as the edge of a grey area."""
    longest = max(series, key=len)
    limits = [row.limit for row in longest]
    top = max(4 * max(limits, default=1.0), *(2 * row.error for rows in series for row in rows if _finite(row)))
    axes.set_yscale("log")
    axes.set_ylim(SMALLEST if min(limits, default=0) < 1e-10 else 1e-10, min(top, 1e6))
    low, high = axes.get_ylim()
    axes.fill_between(range(-1, len(limits) + 1), [limits[0], *limits, limits[-1]], high, step="mid", color="#EEEEEE", zorder=0)
    size = max(1.6, min(4.0, 260 / max(len(longest), 1)))
    for i, (name, rows) in enumerate(zip(names, series, strict=True)):
        x = [j + 0.18 * (i - (len(names) - 1) / 2) for j in range(len(rows))]
        y = [min(max(row.error, low * 1.3), high / 1.3) if not math.isnan(row.error) else high / 1.3 for row in rows]
        style = {"color": COLOURS[i % len(COLOURS)], "markersize": size, "markeredgewidth": 0}
        axes.plot(x, y, marker="o", linewidth=0.7, alpha=0.85, label=name, **style)
        wrong = [(a, b) for a, b, row in zip(x, y, rows, strict=True) if not row.ok]
        ring = {"markersize": size + 5, "markeredgecolor": RED, "markeredgewidth": 1.3}
        axes.plot([a for a, _ in wrong], [b for _, b in wrong], "o", color="none", **ring)
    axes.set_xlim(-0.8, len(longest) - 0.2)


def _finite(row: Row) -> bool:
    return math.isfinite(row.error)


def _groups(axes: Any, rows: Sequence[Row], *, room: float) -> None:
    """The blocks of the model under the axis, a line between them; a name only where there is room for it."""
    names = [_group(row.place) for row in rows]
    edges = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]] + [len(names)]
    ticks, labels, free = [], [], -math.inf
    for start, stop in zip(edges, edges[1:], strict=False):
        centre, width = (start + stop - 1) / 2, room * len(names[start]) * len(names) / 2
        axes.axvline(start - 0.5, color=LIGHT, linewidth=0.7, zorder=0.5)
        if centre - width >= free:
            ticks.append(centre)
            labels.append(names[start])
            free = centre + width
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_tick_params(length=0)


def _group(place: Place) -> str:
    """``block 3`` of ``blocks.3.norm1``; the first part of another path."""
    first, _, rest = place.path.partition(".")
    index = rest.partition(".")[0]
    return f"{first.removesuffix('s')} {index}" if index.isdigit() else first or "loss"


def _losses(axes: Any, agreement: Agreement, judged: Sequence[str]) -> None:
    """How far the losses of training part, relative to the reference's."""
    floor = 1e-17 if agreement.dtype == "float64" else 1e-9
    for spec in agreement.backends[1:]:
        gaps = agreement.losses_apart(spec)
        style = {"color": COLOURS[judged.index(spec) % len(COLOURS)], "linewidth": 1.2}
        marker = "o" if len(gaps) <= 40 else None
        axes.plot(range(1, len(gaps) + 1), [max(g, floor) for g in gaps], marker=marker, markersize=3, **style)
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor / 1.5)
    axes.set_xlabel("step", fontsize=10, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(axes, f"losses of training, against {agreement.backends[0]}")


def _legend(names: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=1, marker="o", markersize=4) for i in range(len(names))
    ]
    return handles, list(names)
