"""Plots as SVG text in one style (matplotlib without its global state)."""

from __future__ import annotations

import io
import re

import numpy as np
from matplotlib.figure import Figure

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
GOOD, BAD = "#2f855a", "#c53030"
COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b7791f", "#319795", "#c53030", "#718096", "#97266d", "#4a5568")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edge-asr",  # the same page for the same result
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "legend.frameon": False,
    "grid.color": GRID,
}


def as_svg(figure: Figure) -> str:
    """SVG element of a figure, without prologue and fixed size, so that it scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", text, count=2)


def new_figure(width: float, height: float, **kwargs: object) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(**kwargs))
