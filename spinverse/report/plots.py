"""Figures of a run, written without a display. Matplotlib is an optional extra.

Every function writes one file; each raises ImportError where matplotlib is not installed.
`write_all` writes all of them from the files of a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..acquisition import Acquisition
from ..errors import SpinverseError
from ..units import frequency_from_internal
from . import folder
from .html_parts import LABELS
from .html_run import Found, Run, at
from .planes import box_edges, lines, section

MEASURED, PREDICTED = "#333333", "#0072b2"
TERMS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
UNDETERMINED = "#d55e00"
DPI = 150


def figure_of(*size, **kwargs):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, **kwargs)
    FigureCanvasAgg(figure)
    return figure


def _panels(count: int, **kwargs):
    """A figure with axes for ``count`` panels, up to four in a row, and how many in a row."""
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = figure_of(3.6 * columns + 0.4, 3.4 * rows + 0.5, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes, columns


def signals(path: Path, acquisition: Acquisition, predicted: np.ndarray,
            measured: np.ndarray | None = None) -> None:
    """Normalised magnitudes ``(N,)`` by b, a panel for each kind of sequence, and a scatter."""
    kinds = panels(acquisition)
    figure, axes, columns = _panels(len(kinds) + (measured is not None))
    every = np.concatenate([predicted, [] if measured is None else measured])
    top = max(float(every.max()), 1e-12)
    low = max(float(every[every > 0].min(initial=top)), 1e-6 * top)
    for index, ((title, rows), axis) in enumerate(zip(kinds.items(), axes, strict=False)):
        b = acquisition.b[rows]
        sets = [("simulated", predicted, PREDICTED, "o")] if measured is None else [
            # larger and open, so that both are seen at the same place
            ("measured", measured, MEASURED, "s"), ("predicted", predicted, PREDICTED, "o")]
        for label, values, colour, marker in sets:
            axis.plot(b, values[rows], marker, color=colour, alpha=0.55, label=label,
                      **({"markersize": 2.6, "markeredgewidth": 0} if marker == "o" else
                         {"markersize": 5, "markeredgewidth": 0.6, "fillstyle": "none"}))
            levels = np.unique(b)
            means = [values[rows][b == level].mean() for level in levels]
            axis.plot(levels, means, color=colour, linewidth=1.0,
                      linestyle="-" if marker == "o" else "--")
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="b (s/mm²)", ylabel="|S| / |S(b = 0)|" if index % columns == 0 else "",
                 yscale="log", ylim=(0.9 * low, 1.1 * top))
        axis.tick_params(which="both", labelsize=8)
    axes[0].legend(fontsize=8, frameon=False, markerscale=2, loc="best",
                   title="dots: directions, line: mean", title_fontsize=7)
    if measured is not None:
        _scatter(axes[len(kinds)], acquisition, measured, predicted)
    figure.savefig(path, dpi=DPI)


def _scatter(axis, acquisition, measured, predicted) -> None:
    low = float(min(measured.min(), predicted.min(), 0.0))
    high = 1.03 * float(max(measured.max(), predicted.max()))
    axis.plot([low, high], [low, high], color="0.6", linewidth=0.8, zorder=0)
    kinds = panels(acquisition)
    for index, (title, rows) in enumerate(kinds.items()):
        axis.plot(measured[rows], predicted[rows], "o", markersize=2.6, alpha=0.6,
                  markeredgewidth=0, color=TERMS[index % len(TERMS)], label=title)
    error = float(np.mean((measured - predicted) ** 2))
    axis.set_title(f"mean square difference {error:.2e}", fontsize=10)
    axis.set(xlabel="measured |S| / |S(b = 0)|", ylabel="predicted", xlim=(low, high),
             ylim=(low, high), aspect="equal")
    axis.tick_params(labelsize=8)
    if len(kinds) <= 6:
        axis.legend(fontsize=7, frameon=False, markerscale=2, loc="upper left")


def phases(path: Path, acquisition: Acquisition, values: np.ndarray) -> None:
    """Phase of complex signals ``(N,)`` by b, a panel for each kind of sequence."""
    kinds = panels(acquisition)
    figure, axes, columns = _panels(len(kinds), sharey=True)
    angles = np.degrees(np.angle(values))
    for (title, rows), axis in zip(kinds.items(), axes, strict=False):
        axis.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
        axis.plot(acquisition.b[rows], angles[rows], "o", color=PREDICTED, markersize=2.6,
                  alpha=0.7, markeredgewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("b (s/mm²)")
        axis.tick_params(labelsize=8)
    for axis in axes[::columns]:
        axis.set_ylabel("phase of S (degrees)")
    figure.savefig(path, dpi=DPI)


def panels(acquisition: Acquisition) -> dict[str, np.ndarray]:
    """Rows of each kind of sequence by its title; waveforms that differ in direction are one."""
    kinds: dict[str, list[int]] = {}
    for index, waveform in enumerate(acquisition.waveforms):
        rows = np.flatnonzero(acquisition.waveform_index == index)
        kinds.setdefault(_sequence(waveform), []).extend(rows.tolist())
    return {title: np.array(sorted(rows)) for title, rows in kinds.items()}


def _sequence(waveform) -> str:
    words = [waveform.name]
    if hasattr(waveform, "periods"):
        words[0] += f" {frequency_from_internal(waveform.periods / waveform.delta):.4g} Hz"
    if hasattr(waveform, "parallel"):
        words[0] += " parallel" if waveform.parallel else " antiparallel"
    if hasattr(waveform, "delta") and hasattr(waveform, "Delta"):
        words.append(f"δ/Δ = {waveform.delta:g}/{waveform.Delta:g} ms")
    else:
        words.append(f"TE = {waveform.echo_time:g} ms")
    if hasattr(waveform, "mixing_time"):
        words.append(f"τ = {waveform.mixing_time:g} ms")
    title = ", ".join(words)
    return title if len(title) < 34 else f"{words[0]}\n{', '.join(words[1:])}"


def priors_of(rows: list[dict]) -> list[str]:
    """Names of the prior terms of a history, in the order of their first use."""
    return [key for key in dict.fromkeys(key for row in rows for key in row)
            if key not in folder.COLUMNS]


def stage_starts(rows: list[dict]) -> list[int]:
    """Numbers of the rows of a history at which stages begin."""
    return [i for i, row in enumerate(rows) if not i or row["stage"] != rows[i - 1]["stage"]]


def losses(path: Path, rows: list[dict]) -> None:
    """Loss, data term and prior terms by iteration, of rows of history.csv; stages are marked."""
    figure = figure_of(7.5, 4.2, layout="constrained")
    axis = figure.subplots()
    x = np.arange(len(rows), dtype=float)
    names, starts = priors_of(rows), stage_starts(rows)
    kinds = [("loss", "loss (weighted sum)", MEASURED, 1.6, "-")] * any(
        row.get("loss") != row.get("data") for row in rows)
    kinds.append(("data", "data: mean square of normalised signals", TERMS[0], 1.4, "-"))
    kinds += [(name, f"prior: {name}", colour, 1.0, "--")
              for name, colour in zip(names, (TERMS * len(names))[1:], strict=False)]
    for name, label, colour, width, style in kinds:
        y = np.array([row.get(name, np.nan) for row in rows], dtype=float)
        # stages have losses of their own: no line from one to the next
        axis.plot(np.insert(x, starts, x[starts] - 0.5),
                  np.insert(np.where(y > 0, y, np.nan), starts, np.nan), color=colour,
                  linewidth=width, linestyle=style, label=label)
    axis.set_yscale("log")
    spans = list(zip(starts, [*starts[1:], len(rows)], strict=True))
    short = any(end - start < 0.12 * len(rows) for start, end in spans)
    for number, (start, end) in enumerate(spans):
        if number:
            axis.axvline(start - 0.5, color="0.7", linewidth=0.8)
        # at two heights, so that the names of short stages do not meet
        axis.annotate(rows[start]["stage"], ((start + end - 1) / 2, 1.0),
                      xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8,
                      color="0.3", xytext=(0, 3 + 10 * (number % 2) * short),
                      textcoords="offset points", annotation_clip=False)
    axis.set(xlim=(-0.5, max(len(rows) - 0.5, 0.5)), xlabel="iteration (all stages)",
             ylabel="terms of the loss")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(axis="y", color="0.92")
    # below the axes: curves fall anywhere inside
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI)


def interface(path: Path | BinaryIO, corners: np.ndarray, permeability: np.ndarray,
              found: np.ndarray, true: np.ndarray | None, bounds: np.ndarray,
              evidence: np.ndarray | None = None,
              level: float = 3.0, determined: np.ndarray | None = None, dpi: int = DPI,
              explained: bool | None = None) -> None:
    """The found interface in its box, beside the true one where that is known; same view.

    Args:
        corners: ``(nf, 3, 3)`` corners of all facets, um; permeabilities are in um/ms.
        found, true: ``(nf,)`` bool, in the box of corners ``bounds (2, 3)``, um.
        evidence: ``(nf,)`` of `Uncertainty`, shown in place of the permeability; a facet is
            undetermined below ``level``.
        determined: ``(nf,)`` bool, where the evidence is not known: undetermined facets are marked.
        explained: of the `Verdict`; False says that the data are not, and nothing is determined.
    """
    from matplotlib import cm, colors
    from matplotlib.patches import Patch
    from matplotlib.ticker import NullFormatter

    panels = 1 if true is None else 2
    figure = figure_of(4.8 * panels + 1.0, 5.0)
    width = 0.88 / panels
    if explained is False:
        evidence, determined = None, np.zeros(len(found), bool)
    if evidence is None:
        values = np.log10(np.maximum(permeability[found], 1e-12))
        low, high = (values.min(), values.max()) if found.any() else (0.0, 0.0)
        if high - low < 0.5:
            low, high = (low + high) / 2 - 0.25, (low + high) / 2 + 0.25
        scale = cm.ScalarMappable(colors.Normalize(low, high), "viridis")
        label = "log10 permeability (µm/ms)"
        unsure = np.zeros(len(values), bool) if determined is None else ~determined[found]
    else:
        values = np.clip(evidence[found], level, 1e6 * level)
        high = values.max(initial=100 * level)
        scale = cm.ScalarMappable(colors.LogNorm(level, high), "viridis")
        label, unsure = "signals notice an opened facet by (σ of noise)", evidence[found] < level
    colours = scale.to_rgba(values, alpha=0.85)
    if evidence is not None:
        colours[:, 3] = 0.45 + 0.5 * scale.norm(values).filled()
    colours[unsure] = (*colors.to_rgb(UNDETERMINED), 0.5)
    title = f"found: {found.sum()} facets"
    if true is not None:
        title += f" ({(found & true).sum()} true, {(found & ~true).sum()} false)"
        grey = np.tile((0.62, 0.66, 0.72, 0.85), (int(true.sum()), 1))
        _facets(figure, (0.0, 0.02, width, 0.88), corners[true], grey, bounds,
                f"true: {true.sum()} facets")
    _facets(figure, (0.88 - width, 0.02, width, 0.88), corners[found], colours, bounds, title)
    if evidence is not None or determined is not None:
        below = "" if evidence is None else f" (below {level:g} σ)"
        words = f"undetermined{below}: {unsure.sum()}" if explained is not False else \
            f"the data are NOT explained: none of {found.sum()} is determined"
        handles = [Patch(facecolor=UNDETERMINED, alpha=0.5, label=words)]
        if explained is not False:
            handles.insert(0, Patch(facecolor=scale.to_rgba(high),
                                    label=f"determined: {(~unsure).sum()}"))
        figure.legend(handles=handles, loc="upper center", ncols=2, fontsize=9, frameon=False,
                      bbox_to_anchor=(0.88 - width / 2, 0.92))
    if not unsure.all():  # else no facet has a colour of the scale
        bar = figure.colorbar(scale, cax=figure.add_axes((0.90, 0.22, 0.018, 0.5)))
        bar.set_label(label, fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=dpi, format="png" if hasattr(path, "write") else None)


def _facets(figure, place, corners, colours, bounds, title) -> None:
    from matplotlib.ticker import MaxNLocator
    from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

    axis = figure.add_axes(place, projection="3d")
    axis.set_title(title, fontsize=11)
    if len(corners):
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
        # facets have no sides: light by the angle alone
        light = 0.6 + 0.4 * np.abs(normal @ np.array([0.4, -0.5, 0.77]))
        colours = np.column_stack([colours[:, :3] * light[:, None], colours[:, 3:]])
        axis.add_collection3d(Poly3DCollection(corners, facecolors=colours,
                                               edgecolors=(0, 0, 0, 0.45), linewidths=0.4))
    axis.add_collection3d(Line3DCollection(box_edges(bounds), colors="0.6", linewidths=0.7))
    axis.set(xlim=bounds[:, 0], ylim=bounds[:, 1], zlim=bounds[:, 2])
    axis.set_box_aspect(bounds[1] - bounds[0], zoom=0.95)
    axis.view_init(elev=22, azim=-58)
    for name in "xyz":
        getattr(axis, f"set_{name}label")(f"{name} (µm)", fontsize=9)
        # ticks at the corners would meet
        getattr(axis, f"{name}axis").set_major_locator(MaxNLocator(4, prune="both"))
    axis.tick_params(labelsize=7, pad=0)
    axis.grid(False)
    for pane in (axis.xaxis, axis.yaxis, axis.zaxis):
        pane.set_pane_color((1, 1, 1, 0))


def calibration(path: Path, reliability: list[dict], coverage: list[dict],
                ranks: list[dict]) -> None:
    """Tables of a calibration: probabilities against shares, intervals, ranks of the truths."""
    figure = figure_of(11.5, 3.6, layout="constrained")
    first, second, third = figure.subplots(1, 3)
    there = [row for row in reliability if row["cells"]]
    first.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    first.errorbar([row["mean probability"] for row in there], [row["inside"] for row in there],
                   [row["error"] for row in there], fmt="o", color=PREDICTED, markersize=4)
    first.set(xlabel="probability to be inside", ylabel="share that is inside")
    names = list(dict.fromkeys(row["quantity"] for row in coverage))
    for name, colour in zip(names, TERMS, strict=False):
        rows = [row for row in coverage if row["quantity"] == name]
        second.errorbar([row["level"] for row in rows], [row["covered"] for row in rows],
                        [row["error"] for row in rows], fmt="o-", color=colour, markersize=4,
                        label=name.replace("_", " "))
    second.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    second.set(xlabel="level of the interval", ylabel="share of truths in it")
    second.legend(fontsize=8, frameon=False)
    for row, colour in zip(ranks, TERMS, strict=False):
        counts = [value for name, value in row.items() if name.endswith("%")]
        third.step(np.arange(len(counts) + 1) / len(counts), [*counts, counts[-1]], where="post",
                   color=colour)
    third.set(xlabel="rank of the truth among samples", ylabel="truths", ylim=(0, None))
    figure.savefig(path, dpi=DPI)


def design(path: Path, found) -> None:
    """Information over the number of measurements: chosen, at random, of all (`Design`)."""
    figure = figure_of(5.5, 3.6, layout="constrained")
    axis = figure.subplots()
    number = np.arange(1, len(found.rows) + 1)
    axis.plot(number, found.information, color=PREDICTED, label="chosen")
    for k, nats in enumerate(found.at_random):
        axis.plot(number, nats[: len(number)], color=MEASURED, linewidth=0.6, alpha=0.6,
                  label="at random" if not k else None)
    axis.axhline(found.of_all, color="#999999", linewidth=1, linestyle="--", label="all")
    axis.set(xlabel="measurements", ylabel="information (nats)", ylim=(0, None))
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=DPI)


def permeability(path: Path, found: Found, cut: float | None = None) -> None:
    """Histogram of the permeability of unknown facets, with the cut (um/ms) if there was one."""
    unknown, (logs, edges) = found.unknown, bins(found, cut)
    figure = figure_of(6.0, 3.6, layout="constrained")
    axis = figure.subplots()
    step = {"histtype": "step", "linewidth": 1.4, "linestyle": "--"}
    for label, member, colour, style in (
            ("found as membrane", found.membrane, PREDICTED, {"alpha": 0.7}),
            ("others", ~found.membrane, MEASURED, {"alpha": 0.7}),
            ("true membrane", found.true, UNDETERMINED, step))[:2 + found.true.any()]:
        axis.hist(logs[member & unknown], edges, color=colour, **style,
                  label=f"{label}: {(member & unknown).sum()}")
    if cut is not None and 0 < cut < np.inf:
        axis.axvline(np.log10(cut), color="0.3", linewidth=1.0, label=f"cut: {cut:.3g} µm/ms")
    axis.set(yscale="log", xlabel="log10 permeability (µm/ms)", ylabel="facets")
    axis.set_ylim(bottom=0.7)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI)


def bins(found: Found, cut: float | None) -> tuple[np.ndarray, np.ndarray]:
    """log10 of permeabilities, ``(Nf,)``, and edges of bins for unknown ones; a cut is an edge."""
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
        low, high = found.bounds + np.outer((-0.02, 0.02), np.ptp(found.bounds, axis=0))
        panel.set(xlim=(low[across], high[across]), ylim=(low[up], high[up]),
                  xlabel=f"{'xyz'[across]} (µm)", ylabel=f"{'xyz'[up]} (µm)", aspect="equal")
        panel.set_title(f"{'xyz'[axis]} = {centre[axis]:.3g} µm", fontsize=10)
        panel.tick_params(labelsize=8)
    handles = [Line2D([], [], color="#1b1b1b", linewidth=2.0, label="found wall")]
    if found.true.any():
        handles.append(Line2D([], [], color=UNDETERMINED, linestyle="--", label="true wall"))
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=DPI)


def of_found(path: Path | BinaryIO, found: Found, explained: bool | None, dpi: int = DPI) -> None:
    """`interface` of what was found."""
    interface(path, found.points[found.triples], found.permeability, found.membrane,
              found.true if found.true.any() else None, found.bounds,
              determined=found.determined, dpi=dpi, explained=explained)


def write_all(run: Run) -> list[Path]:
    """Write ``figures/*.png`` into the folder of a run; the paths. For one rank."""
    place, found = run.path / "figures", run.found
    wanted: dict[str, tuple] = {}
    if run.acquisition is not None:
        wanted["signals"] = signals, run.acquisition, run.predicted, run.measured
    if run.history is not None:
        wanted["losses"] = losses, run.history
    if found is not None:
        wanted["permeability"] = permeability, found, at(run.summary, "interface", "cut_um_per_ms")
        # what a reconstruction draws knows the evidence, which is in no file
        if not (place / "interface.png").is_file():
            wanted["interface"] = of_found, found, at(run.summary, "verdict", "explained")
        if found.labels is not None:
            wanted["planes"] = planes, found
    place.mkdir(exist_ok=True)
    try:
        for name, (function, *args) in wanted.items():
            folder.replace(place / f"{name}.png", lambda path: function(path, *args))  # noqa: B023
    except ImportError as error:
        raise SpinverseError(f"figures: {error.name} is not installed "
                             "(pip install 'spinverse[plot]')") from None
    return [place / f"{name}.png" for name in wanted]
