"""The figures of a run's folder as PNG, from its files; those of facets and cells are made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import SpinverseError
from . import folder, plots
from .html_parts import LABELS
from .html_run import Found, Run
from .planes import lines, section
from .plots import DPI, MEASURED, PREDICTED, UNDETERMINED, figure_of


def permeability(path: Path, found: Found, cut: float | None = None) -> None:
    """Histogram of the permeability of unknown facets, with the cut (um/ms) if there was one."""
    unknown, (logs, edges) = found.unknown, bins(found, cut)
    figure = figure_of(6.0, 3.6, layout="constrained")
    axis = figure.subplots()
    for label, member, colour in (("found as membrane", found.membrane, PREDICTED),
                                  ("others", ~found.membrane, MEASURED)):
        axis.hist(logs[member & unknown], edges, color=colour, alpha=0.7,
                  label=f"{label}: {(member & unknown).sum()}")
    if found.true.any():
        axis.hist(logs[found.true & unknown], edges, histtype="step", color=UNDETERMINED,
                  linewidth=1.4, linestyle="--",
                  label=f"true membrane: {(found.true & unknown).sum()}")
    if cut is not None and 0 < cut < np.inf:
        axis.axvline(np.log10(cut), color="0.3", linewidth=1.0, label=f"cut: {cut:.3g} µm/ms")
    axis.set(yscale="log", xlabel="log10 permeability (µm/ms)", ylabel="facets")
    axis.set_ylim(bottom=0.7)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI)


def bins(found: Found, cut: float | None) -> tuple[np.ndarray, np.ndarray]:
    """log10 of all permeabilities, ``(Nf,)``, and edges of bins for the unknown ones.

    A cut is an edge, so that no bin holds facets of both its sides.
    """
    logs = np.log10(np.maximum(found.permeability, 1e-12))
    chosen = logs[found.unknown & np.isfinite(logs)]
    low, high = (float(chosen.min()), float(chosen.max())) if len(chosen) else (0.0, 0.0)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / 40
    if cut is None or not low < np.log10(cut) < high:
        return logs, np.linspace(low, high, 41)
    place = np.log10(cut)
    below, above = (int(np.ceil(span / width - 1e-9)) for span in (place - low, high - place))
    return logs, place + width * np.arange(-below, above + 1)


def planes(path: Path, found: Found) -> None:
    """Three cross-sections: cells by label, found walls, and true ones dashed."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.lines import Line2D

    if found.labels is None:
        raise ValueError("labels: None, expected one for each cell")
    centre = found.inside
    figure = figure_of(10.2, 4.0, layout="constrained")
    for axis, panel in enumerate(figure.subplots(1, 3)):
        cut = section(found.points, found.cells, axis, centre[axis])
        label = found.labels[cut.cells]
        colours = [LABELS[(k - 1) % len(LABELS)] if k > 0 else "#f0f1f3" for k in label.tolist()]
        panel.add_collection(PolyCollection(cut.polygons, facecolors=colours, edgecolors="0.75",
                                            linewidths=0.3))
        for member, colour, style, width in ((found.membrane, "#1b1b1b", "-", 2.0),
                                             (found.true, UNDETERMINED, "--", 1.4)):
            panel.add_collection(LineCollection(
                lines(found.points, found.triples[member], axis, cut.height), colors=colour,
                linestyles=style, linewidths=width))
        across, up = (j for j in range(3) if j != axis)
        panel.set(xlim=_span(found.points[:, across]), ylim=_span(found.points[:, up]),
                  xlabel=f"{'xyz'[across]} (µm)", ylabel=f"{'xyz'[up]} (µm)", aspect="equal")
        panel.set_title(f"{'xyz'[axis]} = {centre[axis]:.3g} µm", fontsize=10)
        panel.tick_params(labelsize=8)
    handles = [Line2D([], [], color="#1b1b1b", linewidth=2.0, label="found wall")]
    if found.true.any():
        handles.append(Line2D([], [], color=UNDETERMINED, linestyle="--", label="true wall"))
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI)


def _span(x: np.ndarray) -> tuple[float, float]:
    low, high = float(x.min()), float(x.max())
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def write_all(run: Run) -> list[Path]:
    """Write ``figures/*.png`` into the folder of a run; the paths. For one rank.

    Raises:
        SpinverseError: matplotlib is not installed.
    """
    made: list[Path] = []

    def write(name: str, function, *args, **kwargs) -> None:
        made.append(run.path / "figures" / f"{name}.png")
        made[-1].parent.mkdir(exist_ok=True)
        try:
            folder.replace(made[-1], lambda temporary: function(temporary, *args, **kwargs))
        except ImportError as error:
            raise SpinverseError(f"figures: {error.name} is not installed "
                                 "(pip install 'spinverse[plot]')") from None

    if run.acquisition is not None:
        write("signals", plots.signals, run.acquisition, run.predicted, run.measured)
    if run.history is not None:
        write("losses", plots.losses, run.history)
    found = run.found
    if found is None:
        return made
    write("permeability", permeability, found,
          (run.summary.get("interface") or {}).get("cut_um_per_ms"))
    # what a reconstruction draws knows the evidence, which is in no file
    if not (run.path / "figures" / "interface.png").is_file():
        write("interface", plots.interface, found.points[found.triples], found.permeability,
              found.membrane, found.true if found.true.any() else None, found.bounds,
              determined=found.determined,
              explained=(run.summary.get("verdict") or {}).get("explained"))
    if found.labels is not None:
        write("planes", planes, found)
    return made
