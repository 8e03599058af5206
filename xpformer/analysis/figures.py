"""Pictures of a run: training curves, confusion, predictions, mistakes.

Each function returns its path, and raises :class:`ConfigError` where matplotlib is missing and :class:`RunError` where
the file cannot be written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpformer.analysis.drawing import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    ORANGE,
    RED,
    matplotlib,
    new_figure,
    save_figure,
    show_image,
    style_axes,
)
from xpformer.analysis.tables import confusions
from xpformer.array import HostArray
from xpformer.data.images import ImageSet
from xpformer.errors import DataError
from xpformer.training.metrics import Evaluation

Record = Mapping[str, Any]
Place = Callable[[HostArray], HostArray]
"""From a value to its place on the axis."""


def _as_is(y: HostArray) -> HostArray:
    return y


# ---- training curves ------------------------------------------------------------------------------------------------


def training_curves(records: Sequence[Record], path: Path, *, title: str = "") -> Path:
    """Loss, accuracy, learning rate and gradient norm over the steps of a run, the best evaluation marked.

    Training values are drawn as logged (light) and smoothed by a centred mean (dark).  Accuracy has an axis that is
    logarithmic in the error, so that 90, 99 and 99.9 % are equally far apart.

    Args:
        records: of ``log.jsonl``; events other than ``step`` and ``evaluation`` (validation split) do not matter.
        path: of the PNG file.
        title: above the picture.
    """
    steps = [r for r in records if r["event"] == "step"]
    checks = [r for r in records if r["event"] == "evaluation" and r.get("split", "validation") == "validation"]
    if not steps and not checks:
        raise DataError(f"{path}: there is nothing to draw, the log holds no step and no evaluation")
    best = next((r for r in reversed(checks) if r.get("best")), None)
    figure = new_figure(10, 6.4, title)
    (loss, accuracy), (rate, norm) = figure.subplots(2, 2, sharex=True)

    _curve(loss, steps, "loss")
    _points(loss, checks, "loss")
    positive = [v for r in (*steps, *checks) if math.isfinite(v := float(r["loss"])) and v > 0]
    if positive and max(positive) > 5 * min(positive):
        loss.set_yscale("log")
        _plain_ticks(loss, min(positive), max(positive))
    style_axes(loss, "loss (nats)")

    samples = max((int(np.sum(r["confusion"])) for r in checks if "confusion" in r), default=1000)
    values = [float(r["accuracy"]) for r in (*steps, *checks)]
    smallest = 0.5 / max(samples, 1)
    _curve(accuracy, steps, "accuracy", lambda a: _nines(a, smallest))
    _points(accuracy, checks, "accuracy", lambda a: _nines(a, smallest))
    _accuracy_axis(accuracy, values, smallest)
    style_axes(accuracy, "accuracy (%)")

    _line(rate, steps, "lr")
    rate.set_ylim(bottom=0)
    style_axes(rate, "learning rate")
    rate.yaxis.set_major_formatter(lambda v, _: f"{v:.4g}".replace("e-0", "e-"))

    _curve(norm, steps, "norm")
    finite = [v for r in steps if math.isfinite(v := float(r["norm"])) and v > 0]
    if finite:
        norm.set_yscale("log")
        _plain_ticks(norm, min(finite), max(finite))
    style_axes(norm, "gradient norm, before clipping")

    for axes in (rate, norm):
        axes.set_xlabel("step", fontsize=10, color=INK)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    last = max(int(r["step"]) for r in (*steps, *checks))
    loss.set_xlim(0, last * 1.01)
    if best is not None:
        _mark_best(best, last, smallest, loss, accuracy, rate, norm)
    if steps and checks:
        figure.legend(*_legend(), frameon=False, fontsize=10, loc="outside upper right", ncols=2, handlelength=1.6)
    return save_figure(figure, path)


def compared_losses(logs: Mapping[str, Sequence[Record]], path: Path, *, title: str = "") -> Path:
    """The validation loss of several runs over their steps, each line named at its end, from the highest to the lowest.

    Args:
        logs: name of a run to the records of its ``log.jsonl``.
        path: of the PNG file.
        title: above the picture.
    """
    figure = new_figure(9, 5.4, title)
    axes = figure.subplots()
    ends = []
    for number, (name, records) in enumerate(logs.items()):
        checks = [r for r in records if r["event"] == "evaluation" and r.get("split", "validation") == "validation"]
        if not checks:
            raise DataError(f"{path}: there is nothing to draw of {name}, its log holds no evaluation")
        x, y = _series(checks, "loss")
        colour = matplotlib().colormaps["viridis"](0.9 * number / max(1, len(logs) - 1))
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, markeredgewidth=0)
        ends.append((y[-1], x[-1], f"{name}  {y.min():.3f}", colour))
    low, high = axes.get_ylim()
    place = math.inf
    for value, step, text, colour in sorted(ends, reverse=True):  # names that would overlap move down
        place = min(value, place - 0.045 * (high - low))
        at = (step, place)
        axes.annotate(text, at, xytext=(8, 0), textcoords="offset points", va="center", color=colour, fontsize=10)
    axes.set_xlabel("step", color=INK)
    style_axes(axes, "validation loss (nats), and the lowest of each run")
    return save_figure(figure, path)


def _curve(axes: Any, records: Sequence[Record], key: str, place: Place = _as_is) -> None:
    """The values as logged, light, and their running mean, dark."""
    x, y = _series(records, key)
    if len(x) < 20:
        axes.plot(x, place(y), color=BLUE, linewidth=1.2, marker=".")
        return
    axes.plot(x, place(y), color=BLUE, linewidth=0.8, alpha=0.3 if len(x) < 500 else 0.18)
    axes.plot(x, place(_smooth(y)), color=BLUE, linewidth=1.8)


def _line(axes: Any, records: Sequence[Record], key: str) -> None:
    x, y = _series(records, key)
    axes.plot(x, y, color=BLUE, linewidth=1.8, marker="." if len(x) < 2 else None)


def _points(axes: Any, records: Sequence[Record], key: str, place: Place = _as_is) -> None:
    """The validation values."""
    x, y = _series(records, key)
    size = 4.0 if len(x) <= 60 else 2.0
    axes.plot(x, place(y), color=ORANGE, linewidth=1.6, marker="o", markersize=size, markeredgewidth=0)


def _series(records: Sequence[Record], key: str) -> tuple[HostArray, HostArray]:
    return np.array([float(r["step"]) for r in records]), np.array([float(r[key]) for r in records])


def _smooth(y: HostArray) -> HostArray:
    """The mean of the points around each, a twenty-fifth of all, fewer at the ends; not finite ones left out."""
    reach = max(2, len(y) // 50)
    finite = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    at = np.arange(len(y))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(y))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def _legend() -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    train = Line2D([], [], color=BLUE, linewidth=1.8)
    validation = Line2D([], [], color=ORANGE, linewidth=1.6, marker="o", markersize=4, markeredgewidth=0)
    return [train, validation], ["training", "validation"]


def _nines(accuracy: Any, smallest: float) -> HostArray:
    """-log10 of the error: 90 % is at 1, 99 % at 2; no error at all is where the error ``smallest`` would be."""
    return np.asarray(-np.log10(np.maximum(1 - np.asarray(accuracy, float), smallest)))


def _accuracy_axis(axes: Any, values: Sequence[float], smallest: float) -> None:
    """Per cent at the ticks of an axis of :func:`_nines`."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    ticks = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999]
    if max(known) < 0.8:
        ticks = [i / 10 for i in range(9)]
    low, high = _nines([max([t for t in ticks if t < min(known)], default=0.0), max(known)], smallest).tolist()
    marks = {-math.log10(1 - t): f"{100 * t:.10g}" for t in ticks if 1 - t > 1.6 * smallest or max(known) < 1}
    if max(known) == 1.0:
        marks[-math.log10(smallest)] = "100"
    high += 0.04 * (high - low) + 0.02
    shown = {place: text for place, text in marks.items() if low - 1e-9 <= place <= high}
    axes.set_ylim(low, high)
    axes.set_yticks(list(shown), list(shown.values()))


def _plain_ticks(axes: Any, low: float, high: float) -> None:
    """Numbers such as 0.05 and 2 on a logarithmic axis instead of powers of ten, five or so of them."""
    decades = math.log10(high / low) if high > low else 0.0
    factors = (1, 2, 5) if decades < 3 else (1,)
    if decades > 6:
        return
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [f * 10.0**e for e in exponents for f in factors if low * 0.8 <= f * 10.0**e <= high * 1.25]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()


def _mark_best(best: Record, last: int, smallest: float, loss: Any, accuracy: Any, *others: Any) -> None:
    """A line through all panels at the best step, and its values."""
    step = int(best["step"])
    for axes in (loss, accuracy, *others):
        axes.axvline(step, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    left = step > last / 2
    right = float(best["accuracy"])
    for axes, value, text, high in (
        (loss, float(best["loss"]), f"loss {float(best['loss']):.4f}", True),
        (accuracy, float(_nines(right, smallest)), f"best: {100 * right:.2f} %\nat step {step:,}", False),
    ):
        if math.isfinite(value):
            ring = {"markersize": 8, "markeredgecolor": INK, "markeredgewidth": 1.3}
            axes.plot([step], [value], marker="o", color="none", clip_on=False, **ring)
        axes.annotate(
            text,
            (step, 0.97 if high else 0.04),
            xycoords=("data", "axes fraction"),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if high else "bottom",
            fontsize=9.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        )


# ---- confusion ------------------------------------------------------------------------------------------------------


def confusion_figure(evaluation: Evaluation, path: Path, *, title: str = "") -> Path:
    """The confusion matrix on a logarithmic colour scale: right in blue, mistakes in orange.

    Counts stand in the cells up to 25 classes; the most frequent mistakes stand beside the matrix.
    """
    to_rgb = matplotlib().colors.to_rgb
    matrix, names, n = evaluation.confusion, evaluation.classes, len(evaluation.classes)
    split, share = evaluation.split, evaluation.accuracy
    heading = title or f"{split}: {share:.2%} of {evaluation.count:,} right".replace("%", " %")
    size = min(11.0, max(4.5, 260 / n))
    long = max(map(len, names)) * size * 0.6 > 430 / n
    figure = new_figure(10, 7.7 + 0.6 * long, heading)
    axes, side = figure.subplots(1, 2, width_ratios=(7.2, 2.4))
    colours = np.ones((n, n, 3))
    diagonal = np.eye(n, dtype=bool)
    for cells, name in ((diagonal, BLUE), (~diagonal, RED)):
        top = max(10, int(matrix[cells].max(initial=0)))
        strength = np.where(matrix > 0, 0.18 + 0.82 * np.log1p(matrix) / math.log1p(top), 0.0)[..., None]
        colour = np.array(to_rgb(name))
        colours = np.where(cells[..., None], 1 - strength * (1 - colour), colours)
    axes.imshow(colours, interpolation="nearest")
    lines = {"color": LIGHT, "linewidth": 0.8 if n <= 40 else 0.3}
    axes.vlines(np.arange(n + 1) - 0.5, -0.5, n - 0.5, **lines)
    axes.hlines(np.arange(n + 1) - 0.5, -0.5, n - 0.5, **lines)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(n), names, fontsize=size, rotation=90 if long else 0, color=INK)
    axes.set_yticks(np.arange(n), names, fontsize=size, color=INK)
    axes.set_anchor("NW")
    axes.set_xlabel("predicted", fontsize=11, color=INK)
    axes.set_ylabel("true", fontsize=11, color=INK)
    axes.spines[:].set_visible(False)
    if n <= 25:
        digits = max(len(f"{int(v):,}") for v in matrix.flat)
        font = min(12.0, 420 / n / max(2.2, digits * 0.75))
        for i, j in zip(*np.nonzero(matrix), strict=True):
            dark = colours[i, j] @ np.array([0.299, 0.587, 0.114]) < 0.55
            ink = "white" if dark else INK
            axes.text(j, i, f"{int(matrix[i, j]):,}", ha="center", va="center", fontsize=font, color=ink)
    _list_mistakes(side, evaluation)
    figure.draw_without_rendering()  # the layout settles in the second pass, for the square matrix moves in the first
    return save_figure(figure, path)


def _list_mistakes(axes: Any, evaluation: Evaluation, count: int = 15) -> None:
    """The most frequent mistakes as a small bar chart."""
    found = confusions(evaluation, count)
    wrong = evaluation.count - int(np.trace(evaluation.confusion))
    axes.set_axis_off()
    shown = sum(c.number for c in found)
    heading = "no mistakes" if not wrong else f"{wrong:,} mistake{'s' * (wrong > 1)}"
    if shown < wrong:
        heading += f",\n{len(found)} most frequent kinds"
    heading += "\ntrue → predicted" if wrong else ""
    axes.text(0, -2.4, heading, fontsize=10, va="top", color=INK, fontweight="bold")
    axes.set_ylim(count - 0.4, -2.4)
    axes.set_xlim(0, 1)
    top = max((c.number for c in found), default=1)
    for i, c in enumerate(found):
        axes.barh(i + 0.28, 0.85 * c.number / top, height=0.16, color=RED, align="center")
        size, room = (9.0, 11) if max(len(c.truth), len(c.predicted)) <= 11 else (7.2, 15)
        label = f"{_short(c.truth, room)} → {_short(c.predicted, room)}"
        axes.text(0, i - 0.12, label, fontsize=size, va="center", color=INK)
        axes.text(1, i - 0.12, f"{c.number:,}", fontsize=9, va="center", ha="right", color=INK)


# ---- images ---------------------------------------------------------------------------------------------------------


def predictions_grid(
    images: HostArray,
    probabilities: HostArray,
    labels: HostArray | Sequence[int] | None,
    classes: Sequence[str],
    path: Path,
    *,
    captions: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """The images with predicted class and probability, and the truth where it is known; wrong ones framed in red.

    Args:
        images: (N, C, H, W) with 1 or 3 channels, ``uint8`` or floating in 0..1.
        probabilities: (N, K).
        labels: (N,) true classes, or ``None``.
        classes: K names.
        path: of the PNG file.
        captions: a line under each image, such as its file's name.
        title: above the picture.
    """
    count = len(images)
    if count == 0:
        raise DataError(f"{path}: there is no image to draw")
    columns = _columns(count)
    rows = math.ceil(count / columns)
    choices = probabilities.argmax(axis=1)
    wrongs = np.zeros(count, bool) if labels is None else np.asarray(labels) != choices
    lines = 1 + bool(wrongs.any()) + (captions is not None)
    width = 10 if columns >= 6 else max(3.4, 1.67 * columns)
    cell = width / columns
    height, channel_width = images.shape[-2:]
    tall = cell * 0.86 * min(2.0, height / channel_width)
    size = min(10.0, 7.2 * cell)
    figure = new_figure(width, rows * (tall + 0.0185 * size * lines + 0.13) + (0.45 if title else 0.1), title)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    room = max(5, int(cell * 72 / (size * 0.62)))
    for axes in grid[count:]:
        axes.set_axis_off()
    for i, axes in enumerate(grid[:count]):
        wrong, share = bool(wrongs[i]), f" ({_share(float(probabilities[i, choices[i]]))})"
        show_image(axes, images[i], RED if wrong else LIGHT, 2.2 if wrong else 0.8)
        text = _short(classes[int(choices[i])], room - len(share)) + share
        weight = "bold" if wrong else "normal"
        axes.set_title(text, fontsize=size, color=RED if wrong else INK, pad=3.5, fontweight=weight)
        under = []
        if wrong and labels is not None:
            under.append(f"true {_short(classes[int(labels[i])], room - 5)}")
        if captions is not None:
            under.append(_short(" ".join(captions[i].split()), room))
        if under:
            axes.set_xlabel("\n".join(under), fontsize=size, color=INK, labelpad=3)
    return save_figure(figure, path)


def misclassified_grid(images: ImageSet, evaluation: Evaluation, path: Path, *, count: int = 40) -> Path:
    """The wrongly predicted images, those with the largest loss (-log of the true class's probability) first.

    Args:
        images: the split that was evaluated, in its order.
        evaluation: its result.
        path: of the PNG file.
        count: at most so many.
    """
    if len(images) != len(evaluation.predictions):
        raise DataError(f"misclassified: {len(images)} images, but {len(evaluation.predictions)} predictions")
    wrong = np.flatnonzero(evaluation.predictions != images.labels)
    truth = evaluation.probabilities[wrong, images.labels[wrong]]
    worst = wrong[np.argsort(truth, kind="stable")][:count]
    if len(worst) == 0:
        figure = new_figure(6, 1.2, "")
        figure.text(0.5, 0.5, f"{evaluation.split}: all {len(images):,} right", ha="center", va="center", fontsize=14)
        return save_figure(figure, path)
    kinds = f", the {len(worst)} with the largest loss" if len(worst) < len(wrong) else ""
    title = f"{evaluation.split}: {len(wrong):,} of {len(images):,} wrong{kinds}"
    return predictions_grid(
        images.images[worst],
        evaluation.probabilities[worst],
        images.labels[worst],
        images.classes,
        path,
        captions=[f"image {i}" for i in worst],
        title=title,
    )


def _columns(count: int) -> int:
    """Up to ten images a row, fewer and larger ones where there are few."""
    return count if count <= 6 else 6 if count <= 18 else 8 if count <= 32 else 10


def _share(p: float) -> str:
    """``99.8 %``; 100 % only where nothing is left."""
    if p >= 0.9995:
        return "100 %" if p == 1.0 else ">99.9 %"
    return f"{100 * p:.1f} %" if p >= 0.9 else f"{100 * p:.0f} %"


def _short(text: str, room: int) -> str:
    return text if len(text) <= max(room, 2) else text[: max(room, 2) - 1] + "…"
