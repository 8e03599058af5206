"""How pictures are drawn: colours, a figure of its own, plain axes, PNG files written as a whole.

150 dpi, read at 1,000 pixels of width, in the colour-blind-safe palette of Okabe and Ito (2008).  Everything goes
through matplotlib's objects, not through pyplot, so nothing global is touched and threads may draw.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from xpformer.analysis.tables import save
from xpformer.array import HostArray
from xpformer.errors import ConfigError

BLUE, ORANGE, RED = "#0072B2", "#E69F00", "#D55E00"
INK, GREY, LIGHT = "#222222", "#767676", "#DDDDDD"
DPI = 150
_FONT, _LAST_RESORT = "DejaVu Sans", "Last Resort"


def new_figure(width: float, height: float, title: str) -> Any:
    """An empty figure of that many inches."""
    figure = matplotlib().figure.Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def style_axes(axes: Any, title: str) -> None:
    """What is on the axis as the panel's title, no box, a quiet grid."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=GREY)
    axes.grid(axis="y", color=LIGHT, linewidth=0.7)
    axes.set_axisbelow(True)


def show_image(axes: Any, image: HostArray, edge: str, width: float) -> None:
    """One image (C, H, W) without ticks, in a frame; the mean of its channels where they are no three colours."""
    top = 255 if image.dtype == np.uint8 else 1.0
    if len(image) == 3:
        axes.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
    else:
        axes.imshow(image.mean(axis=0), cmap="gray_r", vmin=0, vmax=top, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(edgecolor=edge, linewidth=width)


def fonts_for(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """The font families that have the characters of ``texts``, and the characters that none of this machine has."""
    manager = matplotlib().font_manager.fontManager
    wanted = {character for text in texts for character in text}
    families = [_FONT]
    wanted -= _characters(manager.findfont(_FONT))
    for font in sorted(manager.ttflist, key=lambda f: (f.style != "normal", f.weight != 400, f.name)):
        if not wanted:
            break
        if _LAST_RESORT in font.name:  # it has a box for each block of Unicode, and no characters
            continue
        if found := wanted & _characters(font.fname):
            families.append(font.name)
            wanted -= found
    return families, wanted


def _characters(file: str) -> set[str]:
    """What a font file has; nothing for one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return {chr(code) for code in FT2Font(file).get_charmap()}
    except (OSError, RuntimeError):
        return set()


def save_figure(figure: Any, path: Path) -> Path:
    """Write the PNG, as a whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    data = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return save(path, data.getvalue())


def matplotlib() -> Any:
    """The library, imported when the first picture is drawn."""
    try:
        import matplotlib as mpl
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.font_manager
    except ImportError as error:
        raise ConfigError('pictures need matplotlib, which is missing: pip install "xpformer[recipes]"') from error
    return mpl
