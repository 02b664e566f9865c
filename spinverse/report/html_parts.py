"""What a page is made of: figures with their words and tables, and the colours they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Mid tones, which can be told from white and from near-black paper.
MEASURED, PREDICTED, DATA = "#8b919c", "#2f86d1", "#2f86d1"
FOUND, FALSE, MISSED, TRUE, UNSURE = "#2f86d1", "#d1495b", "#a05cc5", "#8b919c", "#e0902f"
SERIES = ("#5b8def", "#3aa6b9", "#4caf7a", "#a3a635", "#e0902f", "#d65a4a", "#b4559b")
# neither the blue nor the red of walls
LABELS = ("#7fb98a", "#e3b261", "#b48ac2", "#6dbcc0", "#c9a08b", "#a9b45c", "#d59ab5", "#8fa3b8")
BACKGROUND = "rgba(139, 145, 156, 0.16)"  # what lies outside all cells


@dataclass(frozen=True)
class Table:
    """A table; cells are text. What is not ``open`` is behind a click."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    open: bool = True


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure that plotly draws."""

    name: str  # unique in the page, an HTML id
    figure: Any
    height: int  # px
    caption: str
    alt: str  # for readers who do not see the figure
    still: bytes | None = None  # a png for paper and for browsers without WebGL
    solid: bool = False  # drawn with WebGL
    panels: int = 1  # side by side; where they have no room the figure scrolls


@dataclass(frozen=True, eq=False)
class Section:
    """A headed part of the page."""

    name: str  # unique in the page, an HTML id
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    code: tuple[tuple[str, str], ...] = ()  # title and text, shown as it is, behind a click


def series(count: int) -> list[str]:
    """``count`` colours in the order of `SERIES`, blended between them where there are more."""
    if count <= len(SERIES):
        step = (len(SERIES) - 1) / max(count - 1, 1)
        return [SERIES[round(i * step)] for i in range(count)]
    from plotly.colors import sample_colorscale

    return sample_colorscale(list(SERIES), count)


def number(value, digits: int = 4) -> str:
    """A number as people write it; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)
