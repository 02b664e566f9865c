"""Plotly figures of signals and of the misfit."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.spatial import ConvexHull, QhullError

from ..acquisition import Acquisition
from .html_parts import DATA, FALSE, MEASURED, PREDICTED, SERIES, Picture, Table, number, series
from .plots import panels, priors_of, stage_starts

_MOST_DOTS = 16_000  # beyond, means and ranges only
_MOST_TEXTS = 3000  # beyond, directions are not said
_MOST_PANELS = 12
_MOST_SHELLS, _MOST_POINTS = 24, 3000  # on spheres
_LEAST = 1e-6  # of the largest signal, on logarithmic axes
_SAME_B = 0.02  # relative: b-values of one shell


def history(rows: list[dict]) -> Picture:
    """Data term, loss and priors by iteration, a band for each stage."""
    figure = go.Figure()
    names, starts = priors_of(rows), stage_starts(rows)
    ends = [*starts[1:], len(rows)]
    lines: list[tuple[str, str, str, str | None]] = [
        ("data", "data: mean square of normalised signals", DATA, None)]
    if any(row.get("loss") != row.get("data") for row in rows):
        lines.append(("loss", "loss: weighted sum", MEASURED, None))
    lines += [(name, f"prior: {name}", colour, "dot")
              for name, colour in zip(names, series(len(names)), strict=True)]
    # stages have losses of their own: after each a gap
    x = np.insert(np.arange(len(rows)), ends, np.array(ends) - 1)
    text = np.insert([f"{row['stage']}, iteration {row['iteration']}, "
                      f"{row.get('seconds', np.nan):.1f} s" for row in rows], ends, "")
    for key, label, colour, dash in lines:
        y = np.insert([row.get(key, np.nan) for row in rows], ends, np.nan)
        figure.add_scatter(x=x, y=np.where(y > 0, y, None), name=label,
                           text=text if len(rows) <= _MOST_TEXTS else None,
                           mode="lines+markers" if len(rows) < 200 else "lines",
                           marker={"size": 5}, line={"color": colour, "dash": dash, "width": 2},
                           hovertemplate="%{text}<br>%{y:.3e}")
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        figure.add_vrect(start - 0.5, end - 0.5, line_width=0, layer="below",
                         fillcolor="rgba(139,145,156,0.10)" if i % 2 else "rgba(0,0,0,0)",
                         annotation_text=rows[start]["stage"], annotation_position="top left")
    shown = [row[key] for row in rows for key, *_ in lines if row.get(key, 0) > 0]
    decades = np.log10(max(shown) / min(shown)) if shown else 0.0
    figure.update_yaxes(type="log", exponentformat="power", title="terms of the loss",
                        dtick=max(1, round(decades / 6)) if decades > 1 else None)
    figure.update_xaxes(title="iteration, all stages", range=[-0.5, len(rows) - 0.5])
    figure.update_layout(legend={"orientation": "h", "y": -0.22}, margin={"t": 24})
    words = ", ".join(f"{rows[s]['stage']} from {rows[s]['data']:.2e} to {rows[e - 1]['data']:.2e}"
                      f" in {e - s} rows" for s, e in zip(starts, ends, strict=True))
    return Picture("misfit", figure, 380, "The misfit by iteration; stages are named at the top.",
                   f"Lines on a logarithmic scale. Data term by stage: {words}.")


def by_b(acquisition: Acquisition, predicted: np.ndarray, measured: np.ndarray | None,
         axis: str) -> Picture:
    """Signals by b on a logarithmic axis, a panel for each kind of sequence; residuals below."""
    kinds = _kinds(acquisition)
    figure, places = _grid(kinds, "b (s/mm²)", axis, "difference" if measured is not None else "")
    sets = [("simulated", predicted, PREDICTED, "circle", 0)]
    if measured is not None:
        # larger and open, so that both are seen at the same place; differences a panel below
        sets = [("measured", measured, MEASURED, "square-open", 0),
                ("predicted", predicted, PREDICTED, "circle", 0),
                ("predicted − measured", predicted - measured, FALSE, "circle", 1)]
    dots = len(predicted) <= _MOST_DOTS
    for (_, rows), place in zip(kinds.items(), places, strict=True):
        b = acquisition.b[rows]
        shells = [np.flatnonzero(shell) for shell in _shells(b)]
        x, text = [b[shell].mean() for shell in shells], _texts(acquisition, rows)
        for name, every, colour, symbol, below in sets:
            values, size = every[rows], 7 if symbol == "square-open" else 4
            common = {"name": name, "legendgroup": name, "row": place[0] + below, "col": place[1]}
            if dots:
                figure.add_scatter(
                    x=b, y=values, mode="markers", showlegend=False, text=text, marker={
                        "color": colour, "size": size, "opacity": 0.6, "symbol": symbol},
                    hovertemplate=f"{name} %{{y:.3e}}<br>%{{text}}", **common)
            mean = np.array([values[shell].mean() for shell in shells])
            ends = None if dots else {
                "type": "data", "symmetric": False, "thickness": 1,
                "array": [values[shell].max() for shell in shells] - mean,
                "arrayminus": mean - [values[shell].min() for shell in shells]}
            figure.add_scatter(
                x=x, y=mean, mode="lines+markers", showlegend=place == places[0], error_y=ends,
                line={"color": colour, "dash": "dash" if symbol == "square-open" else "solid"},
                marker={"size": size + 3, "symbol": symbol},
                hovertemplate=f"{name}, mean %{{y:.3e}}", **common)
    values = np.concatenate([every for _, every, *_, below in sets if not below])
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    low = max(low, _LEAST * high)
    for place in places:  # b = 0 is where the axis begins, whatever the spacing
        figure.update_yaxes(type="log", exponentformat="power", row=place[0], col=place[1],
                            range=[np.log10(low) - 0.1, np.log10(high) + 0.1])
        if measured is not None:
            most = 1.1 * max(float(np.abs(predicted - measured).max()), 1e-15)
            figure.update_yaxes(range=[-most, most], row=place[0] + 1, col=place[1])
    figure.update_xaxes(range=[-0.03 * acquisition.b.max(), 1.03 * acquisition.b.max() or 1.0])
    caption = "Dots are directions, lines their mean" if dots else \
        "Means over directions, bars from the least to the largest"
    if measured is not None:
        caption += "; below is predicted − measured"
    if len(values) > len(values[values >= low]):
        caption += f"; {(values < low).sum()} values below {low:.1e} are out of the figure"
    more = len(panels(acquisition)) - _MOST_PANELS
    if more > 0:
        caption += f"; {more} more sequences are in the table only"
    return _picture("signals-b", figure, places, caption + ". The signal axis is logarithmic.",
                    f"Signals against b for {', '.join(map(_flat, kinds))}; the numbers are in "
                    "the table below.", 130 if measured is not None else 0)


def by_direction(acquisition: Acquisition, predicted: np.ndarray, measured: np.ndarray | None,
                 axis: str) -> Picture | None:
    """Signals by direction at each b, sorted; None where no shell has three directions."""
    kinds = {title: rows for title, rows in _kinds(acquisition).items()
             if any(shell.sum() > 2 and acquisition.b[rows][shell].max() > 0
                    for shell in _shells(acquisition.b[rows]))}
    if not kinds:
        return None
    order_by, values = ("simulated", predicted) if measured is None else ("measured", measured)
    figure, places = _grid(kinds, f"directions, by {order_by} signal", axis)
    levels = sorted({round(float(acquisition.b[shell].mean()), 1)
                     for shell in _shells(acquisition.b)} - {0.0})
    colours = dict(zip(levels, series(len(levels)), strict=True))
    shown = set()
    for (_, rows), place in zip(kinds.items(), places, strict=True):
        for shell in _shells(acquisition.b[rows]):
            here = rows[shell]
            mean = acquisition.b[here].mean()
            b = min(levels, key=lambda level: abs(level - mean), default=0.0) if mean > 0 else 0.0
            if b == 0 or len(here) < 3:
                continue
            here = here[np.argsort(values[here], kind="stable")]
            common = {"x": np.arange(1, len(here) + 1), "legendgroup": str(b),
                      "text": _texts(acquisition, here), "row": place[0], "col": place[1]}
            figure.add_scatter(
                y=predicted[here], name=f"b = {b:g}", showlegend=b not in shown,
                mode="lines" if measured is not None else "lines+markers",
                marker={"size": 4}, line={"color": colours[b], "width": 1.8},
                hovertemplate="%{y:.4f}<br>%{text}", **common)
            if measured is not None:
                figure.add_scatter(
                    y=measured[here], showlegend=False, mode="markers",
                    name=f"b = {b:g}, measured",
                    marker={"size": 6, "color": colours[b], "symbol": "circle-open"},
                    hovertemplate="measured %{y:.4f}<br>%{text}", **common)
            shown.add(b)
    figure.update_yaxes(rangemode="tozero")
    caption = "Circles are measured signals, lines predicted ones" if measured is not None else \
        "Lines join the directions"
    return _picture("signals-direction", figure, places,
                    f"{caption}; each b is sorted for itself. A flat line is an isotropic signal.",
                    "Signals against direction, sorted, one line for each b; the largest "
                    "differences are in the table of the residual.")


def scatter(acquisition: Acquisition, predicted: np.ndarray, measured: np.ndarray) -> Picture:
    """Predicted against measured signals."""
    figure = go.Figure()
    low = float(min(measured.min(), predicted.min(), 0.0))
    high = 1.03 * float(max(measured.max(), predicted.max()))
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", showlegend=False,
                       line={"color": MEASURED, "width": 1}, hoverinfo="skip")
    kinds = _kinds(acquisition)
    step = -(-len(measured) // _MOST_DOTS)
    for (title, rows), colour in zip(kinds.items(), series(len(kinds)), strict=True):
        rows = rows[::step]
        figure.add_scatter(x=measured[rows], y=predicted[rows], mode="markers", name=_flat(title),
                           marker={"size": 5, "opacity": 0.6, "color": colour},
                           text=_texts(acquisition, rows, with_b=True),
                           hovertemplate="%{text}<br>measured %{x:.4f}, predicted %{y:.4f}")
    figure.update_xaxes(title="measured", range=[low, high], constrain="domain")
    figure.update_yaxes(title="predicted", range=[low, high], scaleanchor="x",
                        constrain="domain")
    figure.update_layout(legend={"orientation": "h", "y": -0.2}, margin={"t": 16})
    error = float(np.sqrt(np.mean((measured - predicted) ** 2)))
    return Picture("scatter", figure, 460, "Predicted against measured signals; on the line they "
                   f"are equal. Root mean square difference: {error:.2e}.",
                   f"Points about the diagonal, root mean square difference {error:.2e}.")


def sphere(acquisition: Acquisition, residual: np.ndarray) -> Picture | None:
    """The residual on the sphere, a shell at a time; None without any, or for few directions."""
    shells = []
    for title, rows in panels(acquisition).items():
        for shell in _shells(acquisition.b[rows]):
            here = rows[shell]
            if acquisition.b[here].min() > 0 and len(here) > 2:
                shells.append((f"{_flat(title)}, b = {acquisition.b[here].mean():.0f}", here))
    if not shells or not residual.any():
        return None
    rms = [float(np.sqrt(np.mean(residual[rows] ** 2))) for _, rows in shells]
    most = max(1, min(_MOST_SHELLS, _MOST_POINTS // max(len(rows) for _, rows in shells)))
    kept, number_of_shells = sorted(np.argsort(rms)[::-1][:most]), len(shells)
    shells = [shells[i] for i in kept]
    worst = int(np.argmax([rms[i] for i in kept]))
    figure = go.Figure()
    owner: list[int] = []
    for k, (_, rows) in enumerate(shells):
        directions = acquisition.directions[rows]
        both = np.concatenate([directions, -directions]).astype(np.float32)
        xyz = dict(zip("xyz", both.T, strict=True))
        values = np.tile(residual[rows], 2).astype(np.float32)
        top = float(np.abs(values).max()) or 1.0
        scale = {"colorscale": "RdBu", "reversescale": True, "cmin": -top, "cmax": top}
        faces = _hull(both)
        if faces is not None:
            figure.add_mesh3d(**xyz, **dict(zip("ijk", faces.T, strict=True)), intensity=values,
                              visible=k == worst, showscale=False, hoverinfo="skip", **scale,
                              lighting={"ambient": 0.9, "diffuse": 0.15, "specular": 0.0})
        figure.add_scatter3d(
            **xyz, mode="markers", visible=k == worst,
            showlegend=False, hovertemplate="(%{x:+.2f}, %{y:+.2f}, %{z:+.2f})<br>"
            "predicted − measured %{marker.color:+.2e}<extra></extra>",
            marker={"size": 5, "color": values, "line": {"color": "#555", "width": 1},
                    "colorbar": {"title": {"text": "predicted − measured", "side": "right"},
                                 "exponentformat": "power", "thickness": 14, "len": 0.8},
                    **scale})
        owner += [k] * (len(figure.data) - len(owner))
    buttons = [{"label": name, "method": "restyle",
                "args": [{"visible": [shell == k for shell in owner]}]}
               for k, (name, _) in enumerate(shells)]
    axes = {"showbackground": False, "range": [-1.15, 1.15], "nticks": 3}
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "active": worst, "x": 0.0, "xanchor": "left",
                      "y": 1.12, "yanchor": "top"}] if len(buttons) > 1 else [],
        scene={"aspectmode": "cube", **{f"{x}axis": {"title": x, **axes} for x in "xyz"}},
        margin={"t": 48, "l": 0, "r": 0, "b": 0}, legend={"x": 0})
    more = "; the menu chooses another, the first shown is the one with the largest residual" \
        if len(buttons) > 1 else f": {shells[0][0]}"
    if number_of_shells > len(shells):
        more += f" ({len(shells)} of {number_of_shells} are here, those with the largest)"
    return Picture("sphere", figure, 480, "The residual by direction, one b of one sequence at a "
                   f"time{more}. Drag to turn, scroll to zoom. Both ends of each direction are "
                   "shown, since |S| is the same.",
                   "A sphere coloured by the residual; the table below has the numbers by b.",
                   solid=True)


def table(acquisition: Acquisition, predicted: np.ndarray,
          measured: np.ndarray | None) -> Table:
    """Means over directions by sequence and b, and the residual."""
    rows = []
    for title, here in panels(acquisition).items():
        for shell in _shells(acquisition.b[here]):
            mine = here[shell]
            row = [_flat(title), f"{acquisition.b[mine].mean():.0f}", str(len(mine))]
            if measured is None:
                row += [f"{of(predicted[mine]):.4f}" for of in (np.mean, np.min, np.max)]
            else:
                off = predicted[mine] - measured[mine]
                most = mine[np.argmax(np.abs(off))]
                row += [f"{measured[mine].mean():.4f}", f"{predicted[mine].mean():.4f}",
                        f"{np.sqrt(np.mean(off**2)):.2e}", f"{np.abs(off).max():.2e}",
                        _direction(acquisition.directions[most])
                        if acquisition.b[most] > 0 and off.any() else number(None)]
            rows.append(tuple(row))
    head = ("sequence", "b (s/mm²)", "directions")
    head += ("mean", "least", "largest") if measured is None else (
        "measured", "predicted", "rms difference", "largest", "where")
    return Table("Means over directions by sequence and b", head, tuple(rows), open=len(rows) <= 24)


def phases(acquisition: Acquisition, values: np.ndarray) -> Picture:
    """Phase of complex signals by b."""
    kinds = _kinds(acquisition)
    figure, places = _grid(kinds, "b (s/mm²)", "phase of S (degrees)")
    for (_, rows), place in zip(kinds.items(), places, strict=True):
        figure.add_scatter(x=acquisition.b[rows], y=np.degrees(np.angle(values[rows])),
                           mode="markers", showlegend=False, marker={"color": SERIES[0]},
                           text=_texts(acquisition, rows),
                           hovertemplate="%{y:.2f}°<br>%{text}", row=place[0], col=place[1])
    return _picture("phases", figure, places, "Phases of the complex signals.",
                    "Phase in degrees against b, a dot a measurement.")


def _kinds(acquisition: Acquisition) -> dict[str, np.ndarray]:
    return dict(list(panels(acquisition).items())[:_MOST_PANELS])


def _shells(b: np.ndarray) -> list[np.ndarray]:
    """Masks of the rows of each b, ascending; scanners' values differ a little."""
    levels = np.unique(b)
    starts = levels[np.concatenate([[True], np.diff(levels) > _SAME_B * levels[1:] + 1e-9])]
    place = np.searchsorted(starts, b, side="right") - 1
    return [place == k for k in range(len(starts))]


def _grid(kinds: dict, x: str, y: str, below: str = ""):
    """Subplots, one a kind, three a row, and their places; ``below``: title of a lower panel."""
    columns, deep = min(len(kinds), 3), 2 if below else 1
    lines = -(-len(kinds) // columns)
    titles, there = [], []  # type: list[str], list[list[dict | None]]
    for k in range(0, lines * columns, columns):
        part = [title.replace("\n", "<br>") for title in list(kinds)[k: k + columns]]
        titles += part + [""] * len(part) * (deep - 1)
        there += [[{}] * len(part) + [None] * (columns - len(part))] * deep
    figure = make_subplots(deep * lines, columns, shared_yaxes=True, horizontal_spacing=0.03,
                           vertical_spacing=min(0.16, 0.5 / lines) / deep, specs=there,
                           row_heights=[0.7, 0.3] * lines if below else None,
                           subplot_titles=titles)
    figure.update_annotations(font_size=13)
    places = [(k // columns * deep + 1, k % columns + 1) for k in range(len(kinds))]
    for row, column in places:
        figure.update_xaxes(title=x, row=row + deep - 1, col=column)
        if below:
            figure.update_xaxes(showticklabels=False, row=row, col=column)
            figure.update_yaxes(exponentformat="power", nticks=4, row=row + 1, col=column)
        if column == 1:
            figure.update_yaxes(title=y, row=row, col=column)
            figure.update_yaxes(title=below or y, row=row + deep - 1, col=column)
    bottom = -0.24 if lines == 1 else -0.24 / lines
    figure.update_layout(legend={"orientation": "h", "y": bottom}, margin={"t": 40})
    return figure, places


def _picture(name: str, figure, places: list, caption: str, alt: str, more: int = 0) -> Picture:
    """With ``more`` px for each line of panels."""
    lines = len({row for row, _ in places})
    return Picture(name, figure, 120 + (290 + more) * lines, caption, alt,
                   panels=max(column for _, column in places))


def _hull(points: np.ndarray) -> np.ndarray | None:
    if len(points) < 12:
        return None
    try:
        faces = ConvexHull(points).simplices
    except QhullError:  # all in a plane
        return None
    a, b, c = (points[faces[:, i]] for i in range(3))
    inwards = np.einsum("fi,fi->f", np.cross(b - a, c - a), a + b + c) < 0
    faces[inwards] = faces[inwards][:, [0, 2, 1]]
    return faces


def _flat(title: str) -> str:
    return " ".join(title.split())


def _direction(d) -> str:
    return "(" + ",\u00a0".join(f"{x:.2f}" for x in d) + ")"


def _texts(acquisition: Acquisition, rows: np.ndarray, with_b: bool = False) -> list | None:
    """What hovers over a dot; nothing in large tables."""
    if len(acquisition) > _MOST_TEXTS:
        return None
    return [(f"b = {b:g}, " if with_b else "") + _direction(d) for b, d in zip(
        acquisition.b[rows], acquisition.directions[rows], strict=True)]
