"""The posterior in the page of a run: walls by their probability, marginals, a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..inversion.posterior.result import JUDGED, Posterior
from . import folder
from .html_parts import FOUND, SERIES, Picture, Section, Table, number
from .html_run import Found
from .html_surface import _add_box, _add_class, _scene

SHOWN = 0.05  # least probability of a wall that is drawn
QUANTITIES = {"volume": "volume (µm³)", "surface_to_volume": "S/V (1/µm)",
              "permeability": "permeability (µm/ms)", "exchange_time": "exchange time (ms)"}


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
    pictures = [*([_walls(posterior, found)] if same else []), _marginals(posterior)]
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
    def row(name):
        (low, high), (least, most) = (posterior.interval(name, level) for level in (0.5, 0.9))
        values = posterior.quantities[name]
        return (name.replace("_", " "), number(float(np.nanmedian(values))),
                f"{low:.4g} to {high:.4g}", f"{least:.4g} to {most:.4g}")

    return Table("Median and intervals", ("", "median", "50 %", "90 %"),
                 tuple(row(name) for name in posterior.quantities))


def _chains(posterior: Posterior) -> Table:
    return Table("Chains", ("", "R-hat", "effective samples"), tuple(
        (name.replace("_", " "), number(posterior.r_hat[name], 3),
         number(posterior.effective[name], 3)) for name in JUDGED))
