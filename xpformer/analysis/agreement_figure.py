"""The picture of an agreement: errors along the depth, forward then backward, of parameters, and of the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from xpformer.analysis.agreement import ACTIVATION, BACKWARD, GRADIENT, LOSS, WEIGHT, Agreement, Place, Row
from xpformer.analysis.drawing import BLUE, GREY, INK, LIGHT, ORANGE, RED, new_figure, save_figure, style_axes
from xpformer.analysis.measure import BACKENDS

GREEN, PURPLE, SKY = "#009E73", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY)
BOTTOM = {"float64": 1e-17, "float32": 1e-10}
"""Of the axes; there stands what does not differ at all."""
BEYOND = "#EEEEEE"


def agreement_figure(agreement: Agreement, path: Path) -> Path:
    """Above: the error of every operation's results, then of its gradients, in the order in which they were computed.

    Below: parameters' gradients and updated weights by depth, and how far the losses of training part.  The grey area
    lies beyond the limit; where a backend is beyond it, a red ring is around the point.

    Args:
        agreement: of two or more backends.
        path: of the PNG file.
    """
    judged = agreement.judged()
    low = BOTTOM[agreement.dtype]
    steps = any(len(agreement.losses_apart(s)) > 1 for s in agreement.backends[1:])
    against = "NumPy's float64" if agreement.dtype == "float32" else agreement.backends[0]
    title = f"{agreement.subject}, {agreement.dtype}: errors against {against}"
    figure = new_figure(10, 7.3, f"{title}\n")  # the empty line is for the legend
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1.0))
    depth = above.subplots(1, 1)
    panels = below.subplots(1, 3 if steps else 2, width_ratios=(1, 1, 0.9)[: 3 if steps else 2])

    rows = [agreement.of(spec, LOSS, ACTIVATION, BACKWARD) for spec in judged]
    _errors(depth, judged, rows, low)
    _groups(depth, max(rows, key=len), room=0.012)
    turn = sum(row.place.kind == ACTIVATION for row in rows[0]) - 0.5
    depth.axvline(turn, color=GREY, linewidth=0.9)
    for x, text, side in ((turn, "forward  ", "right"), (turn, "  backward", "left")):
        look = {"fontsize": 9.5, "color": GREY, "ha": side, "va": "bottom"}
        depth.annotate(text, (x, 1.01), xycoords=("data", "axes fraction"), **look)
    told = {"fontsize": 9, "color": GREY, "va": "top"}
    depth.annotate("beyond the limit", (0.008, 0.975), xycoords="axes fraction", **told)
    style_axes(depth, "operations, in the order of a step")
    for axes, kind, title in (
        (panels[0], GRADIENT, "gradients of parameters"),
        (panels[1], WEIGHT, "weights after one step"),
    ):
        rows = [[row for row in agreement.of(spec, kind) if not row.place.what] for spec in judged]  # without averages
        _errors(axes, judged, rows, low)
        _groups(axes, max(rows, key=len), room=0.03)
        style_axes(axes, title)
    if steps:
        _losses(panels[2], agreement, judged)
    depth.set_ylabel("error / scale", fontsize=10, color=INK)
    panels[0].set_ylabel("error / scale", fontsize=10, color=INK)
    look = {"frameon": False, "fontsize": 10, "handlelength": 1.4, "ncols": len(judged)}
    figure.legend(*_legend(judged), loc="upper left", bbox_to_anchor=(0.001, 0.966), **look)
    return save_figure(figure, path)


def _errors(axes: Any, names: Sequence[str], series: Sequence[Sequence[Row]], low: float) -> None:
    """A point for each tensor of each backend, the limits as the edge of a grey area."""
    longest = max(series, key=len)
    limits = [row.limit for row in longest]
    top = max(6 * max(limits), *(2 * row.error for rows in series for row in rows if math.isfinite(row.error)))
    axes.set_yscale("log")
    axes.set_ylim(low, high := min(top, 1e6))
    edge = [limits[0], *limits, limits[-1]]
    axes.fill_between(range(-1, len(limits) + 1), edge, high, step="mid", color=BEYOND, linewidth=0, zorder=0)
    size = max(1.6, min(4.0, 260 / max(len(longest), 1)))
    for i, (name, rows) in enumerate(zip(names, series, strict=True)):
        x = [j + 0.18 * (i - (len(names) - 1) / 2) for j in range(len(rows))]
        y = [min(max(row.error, low * 1.3), high / 1.3) if not math.isnan(row.error) else high / 1.3 for row in rows]
        style = {"color": COLOURS[i % len(COLOURS)], "markersize": size, "markeredgewidth": 0}
        axes.plot(x, y, marker="o", linewidth=0.7, alpha=0.85, label=name, **style)
        wrong = [(a, b) for a, b, row in zip(x, y, rows, strict=True) if not row.ok]
        ring = {"markersize": size + 5, "markeredgecolor": RED, "markeredgewidth": 1.3}
        axes.plot([a for a, _ in wrong], [b for _, b in wrong], "o", color="none", **ring)
    axes.set_xlim(-0.9, len(longest) - 0.1)


def _groups(axes: Any, rows: Sequence[Row], *, room: float) -> None:
    """The blocks of the model under the axis, a line between them; a name only where there is room for it."""
    names = [_group(row.place) for row in rows]
    edges = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]] + [len(names)]
    ticks, labels, free = [], [], -math.inf
    for start, stop in pairwise(edges):
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
    low, most = BOTTOM[agreement.dtype], 0.0
    for spec in agreement.backends[1:]:
        gaps = agreement.losses_apart(spec)
        most = max(most, *gaps) if gaps else most
        style = {"color": COLOURS[judged.index(spec) % len(COLOURS)], "linewidth": 1.0, "alpha": 0.85}
        marker = "o" if len(gaps) <= 40 else None
        axes.plot(range(1, len(gaps) + 1), [max(g, 1.3 * low) for g in gaps], marker=marker, markersize=3, **style)
    axes.set_yscale("log")
    if agreement.dtype == "float64":
        axes.axhspan(BACKENDS, 1e6, color=BEYOND, linewidth=0, zorder=0)
    axes.set_ylim(low, max(2 * most, 6 * BACKENDS if agreement.dtype == "float64" else 1e-5))
    axes.set_xlabel("step", fontsize=10, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)
    style_axes(axes, f"losses, against {agreement.backends[0]}")


def _legend(names: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], linewidth=1, marker="o", markersize=4)
        for i in range(len(names))
    ]
    return handles, list(names)
