"""The posterior in the page of a run: walls by their probability, samples, marginals, a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..engines.shapes.walls import is_wall
from ..errors import InputError
from ..inversion.parameters import KINDS
from ..inversion.posterior.result import JUDGED, Posterior
from . import folder
from .html_parts import FOUND, LABELS, SERIES, Picture, Section, Table, number
from .html_run import Found
from .html_surface import _add_box, _add_class, _add_edges, _add_mesh, _scene

SHOWN = 0.05  # least probability of a wall that is drawn
SAMPLES, MOST_FACETS = 24, 16_000  # that the slider goes through, and that they have in all
QUANTITIES = {"volume": "volume (µm³)", "surface_to_volume": "S/V (1/µm)",
              "permeability": "permeability (µm/ms)", "exchange_time": "exchange time (ms)"}
#: Of quantities and of what they are called for single cells; those without one are not here.
UNITS = {"volume": "µm³", "surface": "µm²", "surface_to_volume": "1/µm",
         "permeability": "µm/ms", "exchange_time": "ms"}


def section(path: Path, found: Found | None) -> Section | None:
    """Of the folder of a run; None where it has no posterior."""
    file = path / folder.POSTERIOR
    if not file.is_file():
        return None
    title = "What the data say, and what they do not"
    try:
        posterior = Posterior.load(file)
    except InputError as error:
        return Section("posterior", title, (f"{error}.",))
    same = found is not None and np.array_equal(found.triples, posterior.facets)
    pictures = [*([_walls(posterior, found), _samples(posterior, found)] if same else []),
                _marginals(posterior)]
    return Section("posterior", title, (posterior.doubts,) if posterior.doubts else (),
                   tuple(pictures), (_numbers(posterior), _chains(posterior)))


def _walls(posterior: Posterior, found: Found) -> Picture:
    import plotly.graph_objects as go

    figure, p = go.Figure(), posterior.wall_probability
    _add_class(figure, found.points, found.triples, p >= SHOWN, FOUND, "walls", p)
    _add_box(figure, found.points)
    _scene(figure)
    return Picture("posterior-walls", figure, 560, "The more opaque a facet, the more probable it "
                   f"is a wall; those below {100 * SHOWN:.0f} % are left out.",
                   f"{int((p > 0.5).sum())} facets are walls with more than 50 %.", solid=True)


def _samples(posterior: Posterior, found: Found) -> Picture:
    """One shape at a time, in the order of the chains."""
    import plotly.graph_objects as go

    walls = np.array([is_wall(labels, posterior.sides) for labels in posterior.aligned])
    most = int(np.clip(MOST_FACETS // max(walls.sum(axis=1).mean(), 1), 1, SAMPLES))
    chosen = np.unique(np.linspace(0, len(walls) - 1, most).astype(int)).tolist()
    figure, blocks = go.Figure(), []
    for k in chosen:
        before, triples = len(figure.data), found.triples[walls[k]]
        beside = posterior.sides[walls[k]]
        label = np.where(beside < 0, 0, posterior.aligned[k][beside]).max(axis=1)
        for cell in np.unique(label).tolist():
            _add_mesh(figure, found.points, triples[label == cell],
                      LABELS[(cell - 1) % len(LABELS)], 1.0, name=f"cell {cell}",
                      visible=k == chosen[0])
        _add_edges(figure, found.points, triples, visible=k == chosen[0], showlegend=False)
        blocks.append((before, len(figure.data)))
    _add_box(figure, found.points)
    _scene(figure)
    volume = posterior.quantities["volume"]
    steps = [{"method": "restyle", "label": f"{k + 1}: {volume[k]:.0f} µm³",
              "args": [{"visible": [a <= i < b or i >= blocks[-1][1]
                                    for i in range(len(figure.data))]}]}
             for k, (a, b) in zip(chosen, blocks, strict=True)]
    if len(steps) > 1:
        figure.update_layout(sliders=[{"steps": steps, "active": 0, "pad": {"t": 8},
                                       "currentvalue": {"prefix": "sample "}}])
    return Picture("posterior-samples", figure, 600, f"{len(chosen)} of {len(walls)} samples, in "
                   "the order of the chains; the slider goes through them. Each is shifted or "
                   "reflected so that it lies best over the likeliest one, for the data hardly "
                   "tell where a shape lies.", f"{len(chosen)} shapes, one at a time.", solid=True)


def _marginals(posterior: Posterior) -> Picture:
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(QUANTITIES), horizontal_spacing=0.06)
    for column, (name, title) in enumerate(QUANTITIES.items(), 1):
        values = posterior.quantities[name]
        counts, edges = np.histogram(values, 24)
        figure.add_bar(x=(0.5 * (edges[1:] + edges[:-1])).tolist(), y=counts.tolist(),
                       marker={"color": SERIES[0], "line": {"width": 0}}, showlegend=False,
                       row=1, col=column)
        figure.update_xaxes(title=title, row=1, col=column)
    figure.update_layout(bargap=0, margin={"t": 10, "l": 40, "r": 10, "b": 50})
    return Picture("posterior-marginals", figure, 300, "How often samples have which value.",
                   "Histograms of volume, surface to volume, permeability and exchange time.",
                   panels=len(QUANTITIES))


def _numbers(posterior: Posterior) -> Table:
    values = dict(posterior.quantities)
    for name, each in posterior.theta.items():
        if name != "wall_permeability":  # that of all walls is there
            values |= {name: each} if each.ndim == 1 else {
                f"{name} of cell {k}": column for k, column in enumerate(each.T, 1)}

    def row(name):
        known = values[name][np.isfinite(values[name])]
        least, low, middle, high, most = np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])
        kind = name.partition(" of cell ")[0]
        unit = UNITS.get(kind) or (KINDS[kind].unit if kind in KINDS else "")
        return (name.replace("_", " "), number(float(middle)), f"{low:.4g} to {high:.4g}",
                f"{least:.4g} to {most:.4g}", unit)

    return Table("Median and intervals", ("", "median", "50 %", "90 %", "unit"), tuple(
        row(name) for name in values if np.isfinite(values[name]).any()))


def _chains(posterior: Posterior) -> Table:
    return Table("Chains", ("", "R-hat", "effective samples"), tuple(
        (name.replace("_", " "), number(posterior.r_hat[name], 3),
         number(posterior.effective[name], 3)) for name in JUDGED))
