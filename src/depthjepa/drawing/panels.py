"""What all figures share: rows of panels, colour bars, captions, and writing them to a file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from depthjepa.faults import BadInput, nearest
from depthjepa.logbook import whole_file

INVALID = (0.72, 0.72, 0.72)
INK = "#1f2933"
FAINT = "#7b8794"
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#5f6b6d")
PAGE_WIDTH = 10.0  # inches, as the following
TALLEST = 3.0  # a panel
BAR_WIDTH, BAR_ROOM = 0.11, 0.8  # a colour bar, and it with its figures
SUFFIXES = (".png", ".pdf", ".svg", ".jpg")


@dataclass(frozen=True, slots=True)
class Captioned:
    """A figure, what one sees there, and what would be seen had it failed (a clause with its full stop)."""

    figure: Figure
    seen: str
    failed: str


def run_colour(index: int) -> str:
    """Return the colour of run `index` in figures and tables; it repeats after eight runs."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as `.png`, `.pdf`, `.svg` or `.jpg` and make the folders above it.

    Raises:
        BadInput: for any other suffix, and where the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = nearest(suffix, SUFFIXES)
        raise BadInput(f"{path}: a figure cannot be written as {path.suffix!r}{hint}; use {', '.join(SUFFIXES)}")
    with whole_file(path) as file:
        figure.savefig(file, format=suffix[1:], dpi=150)


def explain_grey(figure: Figure, why: str) -> None:
    explain(figure, f"grey: {why}")


def explain(figure: Figure, text: str) -> None:
    figure.supxlabel(wrapped(text, int(figure.get_figwidth() * 14)), fontsize=8, color=FAINT)
    figure.set_figheight(figure.get_figheight() + 0.2)


def panel_grid(
    rows: int, names: Sequence[str], shape: tuple[int, ...], *, bar: bool = False
) -> tuple[Figure, np.ndarray]:
    room = BAR_ROOM if bar else 0.0
    widest = min(2.0, TALLEST * shape[1] / shape[0])
    width = float(np.clip((PAGE_WIDTH - room) / len(names), 1.1, max(1.1, widest)))
    height = width * shape[0] / shape[1]
    titles = [wrapped(name, int(width * 11)) for name in names]
    lines = max(2 if bar else 0, *(title.count("\n") + 1 if title else 0 for title in titles))
    size = (len(names) * width + room, rows * (height + 0.06) + 0.15 + 0.15 * lines)
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=layout)
    axes = figure.subplots(rows, len(names), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, color=INK, pad=4)
    return figure, axes


def wrapped(name: str, room: int) -> str:
    return "\n".join(part for line in name.split("\n") for part in textwrap.wrap(line, room))


def show_panel(axis: Any, panel: np.ndarray, shape: tuple[int, ...]) -> None:
    smooth = panel.dtype == np.uint8  # photographs are resampled smoothly, cells are shown as they are
    extent = (0, shape[1], shape[0], 0)
    axis.imshow(panel, extent=extent, interpolation="antialiased" if smooth else "nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def colour_bar(figure: Figure, axes: Any, map_name: str, low: float, high: float, label: str = "") -> None:
    """A colour bar beside the panels of one row or of all, with its label on top: rows may be too low for one aside."""
    rows = np.atleast_2d(axes)
    width, height = figure.get_size_inches()
    height *= len(rows) / rows[0, 0].get_gridspec().nrows
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), map_name),
        ax=list(rows.flat),
        pad=0.01,
        aspect=height / BAR_WIDTH,
        fraction=1.5 * BAR_WIDTH / width,  # at most: the aspect tells the width
        extend="both",  # a scale ends before the rarest values do
        extendfrac=0.6 * BAR_WIDTH / height,
        ticks=MaxNLocator(int(np.clip(height / 0.25, 2, 8))),
    )
    # No title: the layout makes no room for the width of titles.
    spot: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    bar.ax.annotate(label, (0, 1), (0, 3), fontsize=7, color=FAINT, **spot)
    bar.ax.tick_params(labelsize=7, colors=FAINT)
    bar.outline.set(edgecolor=FAINT, linewidth=0.4)  # the brightest colours are hardly seen on white
