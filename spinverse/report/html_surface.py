"""Plotly figures of facets and cells: permeabilities, the interface, planes, the mesh."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..mesh import MeshData
from ..mesh.checks import facets_of
from ..units import permeability_from_internal
from .html_parts import BACKGROUND, FALSE, FOUND, LABELS, MEASURED, MISSED, TRUE, UNSURE, Picture
from .html_run import MOST_CELLS, Found
from .planes import box_edges, lines, section
from .plots import bins

_OPACITIES = (0.5, 0.65, 0.8, 0.96)
_MOST_FACETS = 16_000  # in one scene
_MOST_EDGED = 1500
_MOST_POLYGONS = 12_000  # in all planes
_PLANES = 7
_FINE = 1500  # polygons in a plane from which their edges, and what is outside, are not drawn


def histogram(facets: Found, cut: float | None, rule: str) -> Picture:
    """Permeabilities of unknown facets, and the cut if one was used."""
    unknown = facets.unknown
    logs, edges = bins(facets, cut)
    middle, width = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    figure, spans = go.Figure(), []
    for title, member, colour in (("found as membrane", facets.membrane, FOUND),
                                  ("others", ~facets.membrane, MEASURED)):
        counts = np.histogram(logs[member & unknown], edges)[0]
        figure.add_bar(x=middle, y=np.where(counts > 0, counts, None), width=width, name=title,
                       marker={"color": colour, "opacity": 0.8, "line": {"width": 0}},
                       customdata=10.0**middle, hovertemplate=f"{title}: %{{y}} facets<br>"
                       "about %{customdata:.3g} µm/ms<extra></extra>")
        kappa = facets.permeability[member & unknown]
        if len(kappa):
            spans.append(f"{title.split()[-1]}: {len(kappa)} facets, {kappa.min():.3g} to "
                         f"{kappa.max():.3g} µm/ms")
    if facets.true.any():
        counts = np.histogram(logs[facets.true & unknown], edges)[0]
        figure.add_scatter(x=np.repeat(edges, 2)[1:-1], mode="lines", name="true membrane",
                           y=np.repeat(np.where(counts > 0, counts, np.nan), 2),
                           line={"color": MISSED, "width": 2, "dash": "dot"}, hoverinfo="skip")
    words = rule
    if cut is not None and cut > 0:
        figure.add_vline(np.log10(cut), line={"color": FALSE, "width": 2},
                         annotation_text=f"cut: {cut:.3g} µm/ms")
        words += (f" The line is the cut, {cut:.3g} µm/ms "
                  f"({permeability_from_internal(cut):.3g} m/s).")
    figure.update_layout(barmode="overlay", bargap=0, margin={"t": 28},
                         legend={"orientation": "h", "y": -0.26})
    figure.update_xaxes(title="log10 of permeability (µm/ms)")
    most = max(int(unknown.sum()), 10)
    figure.update_yaxes(title="facets", type="log", dtick=1, range=[-0.3, np.log10(most) + 0.15])
    return Picture("permeability", figure, 340, f"{words} Counts are on a logarithmic scale.",
                   f"Histogram of permeabilities. {'; '.join(spans)}.")


def cells(facets: Found, still: bytes | None) -> Picture | None:
    """Found cells in their box, beside the true membrane where it is known; None without cells."""
    found, known = facets.found_cells, bool(facets.true.any())
    if not found:
        return None
    titles = ["true", "found"] if known else ["found"]
    figure = make_subplots(1, len(titles), subplot_titles=titles, horizontal_spacing=0.0,
                           specs=[[{"type": "scene"}] * len(titles)])
    if known:
        _add_mesh(figure, facets.points, facets.triples[facets.true], TRUE, 1.0, scene="scene",
                  name="true membrane", showlegend=True)
    last = "scene2" if known else "scene"
    step = -(-sum(int(surface.sum()) for *_, surface in found) // _MOST_FACETS)
    for k, (label, _, surface) in enumerate(found):
        name = f"cell {label}" if k < len(LABELS) else "further cells"
        _add_mesh(figure, facets.points, facets.triples[surface][::step],
                  LABELS[k % len(LABELS)], 1.0, scene=last, name=name, legendgroup=name,
                  showlegend=k <= len(LABELS))
    drawn = {"scene": facets.true, last: np.any([surface for *_, surface in found], axis=0)}
    for scene, chosen in drawn.items():
        _add_edges(figure, facets.points, facets.triples[chosen], scene=scene, showlegend=False)
        _add_box(figure, facets.points, scene=scene)
    _scene(figure, *drawn)
    figure.update_layout(margin={"t": 26}, legend={"orientation": "h", "y": -0.02})
    count = "The largest" if len(found) == MOST_CELLS else f"{len(found)}"
    count += f" {'region' if facets.labels_enclosed else 'cell'}{'s' * (len(found) > 1)}"
    caption = count + (" that the found facets enclose" if facets.labels_enclosed else " found")
    caption += ", beside the true membrane" if known else ""
    caption += ". Drag to turn, scroll to zoom; a click on a name in the legend hides it. " \
        "Surfaces of mesh facets are rougher, and so larger, than smooth ones."
    if step > 1:
        caption += f" Every {step}th facet is drawn."
    return Picture("cells", figure, 460, caption, f"{caption.split('.')[0]}, in a box; the table "
                   "below has their sizes.", still, solid=True, panels=len(titles))


def interface(facets: Found, explained: bool | None, still: bytes | None) -> Picture:
    """The interface in its box, to be turned; classes of facets can be switched on and off."""
    points = facets.points
    found, true = facets.membrane, facets.true
    known = true.any()
    surely = np.ones(len(true), bool) if facets.determined is None else facets.determined
    classes = [("found", found & surely, FOUND)]
    if known:
        classes = [("found and true", found & true & surely, FOUND),
                   ("found, not true", found & ~true & surely, FALSE),
                   ("true, not found", true & ~found, MISSED)]
    some = f", {(found & true & ~surely).sum()} of them true" if known else ""
    why = ": the data are NOT explained" if explained is False else ""
    classes.append((f"found, undetermined{some}{why}", found & ~surely, UNSURE))
    figure = go.Figure()
    shown = found | true
    step = -(-int(shown.sum()) // _MOST_FACETS)
    drawn = np.zeros(len(shown), bool)
    drawn[np.flatnonzero(shown)[::step]] = True
    confidence = None if facets.posterior_std is None or explained is False else np.clip(
        1 - facets.posterior_std / facets.prior_std, 0.0, 1.0)
    for name, member, colour in classes:
        member = member & drawn
        if member.any():
            _add_class(figure, points, facets.triples, member, colour, name, confidence)
    if known:
        _add_mesh(figure, points, facets.triples[true & drawn], TRUE, 0.35,
                  name=f"true membrane ({true.sum()})", visible="legendonly", showlegend=True)
    _add_edges(figure, points, facets.triples[drawn])
    _add_box(figure, points)
    _scene(figure)
    said = ", ".join(f"{member.sum()} {name}" for name, member, _ in classes if member.any())
    caption = (f"{said[:1].upper()}{said[1:] or 'No facet was found'}. Drag to turn, scroll to "
               "zoom; a click on a name in the legend hides it")
    caption += ", and shows the true membrane." if known else \
        ". The mesh knows no true membrane, so none is shown."
    if confidence is not None:
        caption += (" The more opaque a facet, the surer the signals make it: opacity follows "
                    "1 − (posterior ÷ prior standard deviation of its openness).")
    if step > 1:
        caption += f" Every {step}th of the {shown.sum()} facets is drawn."
    return Picture("interface", figure, 560, caption, f"Surfaces in a box: {said}.", still,
                   solid=True)


def mesh(data: MeshData) -> Picture:
    """The mesh of a simulation: its membranes by tag, or its cells by tag in the plane."""
    figure = go.Figure()
    if data.dim == 2:
        return _plane_mesh(data, figure)
    triples, tags, kind = data.interface_facets, data.interface_tags, "membrane"
    if not len(triples):
        triples, pairs = facets_of(data.cells, data.name)
        outer = pairs[:, 1] < 0
        triples, tags, kind = triples[outer], data.cell_tags[pairs[outer, 0]], "outer boundary"
    step = -(-len(triples) // _MOST_FACETS)
    triples, tags = triples[::step], tags[::step]
    distinct = np.unique(tags)
    many = len(distinct) > len(LABELS)
    for k, tag in enumerate(distinct if not many else [None]):
        chosen = slice(None) if many else tags == tag
        label = f"{kind}s" if many else f"{kind}, {'cell ' if kind[0] == 'o' else ''}tag {tag}"
        _add_mesh(figure, data.points, triples[chosen], LABELS[k], 0.55, name=label,
                  showlegend=True)
    _add_edges(figure, data.points, triples)
    _add_box(figure, data.points)
    _scene(figure)
    caption = f"The {kind} of the mesh, coloured by tag. Drag to turn, scroll to zoom."
    if step > 1:
        caption += f" Every {step}th facet is drawn."
    return Picture("mesh", figure, 520, caption, f"{len(triples)} facets of the {kind} in a box.",
                   solid=True)


def planes(facets: Found) -> Picture | None:
    """Cells of three planes by label, with true and found walls; a slider moves the planes."""
    labels = facets.labels
    if labels is None:
        return None
    (low, high), centre = facets.bounds, facets.inside
    whole = [section(facets.points, facets.cells, axis, centre[axis]) for axis in range(3)]
    size = sum(len(s.cells) for s in whole)
    count = int(np.clip(_MOST_POLYGONS // max(size, 1), 1, _PLANES))
    count -= count % 2 == 0
    shares = np.linspace(-0.9, 0.9, count) if count > 1 else np.zeros(1)
    heights = np.where(shares[:, None] > 0, centre + shares[:, None] * (high - centre),
                       centre + shares[:, None] * (centre - low))
    names = ["yz plane", "xz plane", "xy plane"]
    figure = make_subplots(1, 3, subplot_titles=names, horizontal_spacing=0.07)
    figure.update_annotations(font_size=13)
    distinct = np.unique(labels).tolist()
    colours = {label: BACKGROUND if label == 0 else LABELS[(label - 1) % len(LABELS)]
               for label in distinct}
    blocks, middle = [], count // 2
    for k, row in enumerate(heights):
        before = len(figure.data)
        cuts = whole if k == middle else [
            section(facets.points, facets.cells, axis, row[axis]) for axis in range(3)]
        for axis, cut in enumerate(cuts):
            _add_section(figure, facets, labels, cut, colours, axis, k == middle)
        blocks.append((before, len(figure.data)))
    for name, wall, dash, shown in (("found wall", FOUND, None, True),
                                    ("true wall", FALSE, "dash", facets.true.any())):
        if shown:  # for the legend alone
            figure.add_scatter(x=[None], y=[None], mode="lines", name=name, legendgroup=name,
                               line={"color": wall, "dash": dash, "width": 3})
    outside, part = ("largest region", "region") if facets.labels_enclosed else ("outside", "cell")
    for label in distinct[: len(LABELS) + 1]:
        figure.add_scatter(x=[None], y=[None], mode="markers", legendgroup=f"label {label}",
                           marker={"symbol": "square", "size": 12, "color": colours[label],
                                   "line": {"width": 1, "color": MEASURED}},
                           name=f"{part} {label}" if label else outside)
    ends = blocks[-1][1]
    steps = [{"method": "restyle",
              "label": f"{share:+.0%}" if abs(share) > 1e-9 else "centre",
              "args": [{"visible": [a <= i < b or i >= ends for i in range(len(figure.data))]}]}
             for share, (a, b) in zip(shares, blocks, strict=True)]
    if count > 1:
        figure.update_layout(sliders=[{"steps": steps, "active": middle, "pad": {"t": 52},
                                       "currentvalue": {"prefix": "planes at "}}])
    for axis in range(3):
        across, up = (name for name in "xyz" if name != "xyz"[axis])
        _plane_axes(figure, across, up, axis + 1)
    figure.update_layout(legend={"orientation": "h", "y": 1.16, "yanchor": "bottom"},
                         margin={"t": 90})
    caption = "Mesh cells by " + (
        "region: what the found facets enclose, the largest first" if facets.labels_enclosed
        else "the label that the search gave them") + "; with the walls that were found"
    caption += " and, dashed, the true ones" if facets.true.any() else ""
    at = ", ".join(f"{name} = {value:.3g}" for name, value in zip("xyz", centre, strict=True))
    caption += f". The middle planes go through {at} µm"
    caption += "; the slider moves all three." if count > 1 else "."
    if max(len(s.cells) for s in whole) > _FINE:
        caption += " What lies outside is left empty."
    inside = int((labels > 0).sum())
    words = "outside the largest region" if facets.labels_enclosed else "inside a cell"
    return Picture("planes", figure, 520, caption, f"Three cross-sections; {inside} of "
                   f"{len(labels)} mesh cells lie {words}.", panels=3)


def _add_class(figure, points, triples, member, colour, name, confidence) -> None:
    """Facets of a class by their confidence: plotly has one opacity a surface."""
    levels = np.full(member.sum(), len(_OPACITIES) - 1) if confidence is None else np.minimum(
        (confidence[member] * len(_OPACITIES)).astype(int), len(_OPACITIES) - 1)
    for level in np.unique(levels)[::-1]:
        _add_mesh(figure, points, triples[member][levels == level], colour, _OPACITIES[level],
                  legendgroup=name, name=f"{name} ({member.sum()})",
                  showlegend=bool(level == levels.max()))


def _add_mesh(figure, points, triples, colour, opacity, **more) -> None:
    used, corners = np.unique(triples, return_inverse=True)
    x, corners = points[used].astype(np.float32), corners.reshape(-1, 3).astype(np.int32)
    figure.add_mesh3d(**dict(zip("xyzijk", (*x.T, *corners.T), strict=True)), color=colour,
                      opacity=opacity, flatshading=True, hoverinfo="skip",
                      lighting={"ambient": 0.62, "diffuse": 0.6, "specular": 0.05}, **more)


def _add_box(figure, points, **more) -> None:
    edges = box_edges(np.array([points.min(axis=0), points.max(axis=0)]))
    figure.add_scatter3d(**_broken(edges), mode="lines", line={"color": MEASURED, "width": 1},
                         showlegend=False, hoverinfo="skip", **more)


def _scene(figure, *names: str) -> None:
    axes = {f"{name}axis": {"title": f"{name} (µm)", "showbackground": False, "nticks": 5}
            for name in "xyz"}
    scene = {"aspectmode": "data", "camera": {
        "eye": {"x": 1.3, "y": -1.7, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.08}}, **axes}
    figure.update_layout(**dict.fromkeys(names or ("scene",), scene),
                         legend={"x": 0, "y": 1, "bgcolor": "rgba(0,0,0,0)"},
                         margin={"t": 8, "l": 0, "r": 0, "b": 0})


def _add_edges(figure, points: np.ndarray, triples: np.ndarray, **more) -> None:
    """Edges of triangles as one broken line, on both sides of them; none on fine surfaces."""
    if not 0 < len(triples) <= _MOST_EDGED:
        return
    x = points[triples]
    normal = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
    # in the surface itself they would be drawn in parts only
    aside = 1.5e-3 * np.ptp(points, axis=0).max() * normal[:, None]
    path = np.concatenate([x + aside, x - aside])[:, [0, 1, 2, 0]]
    figure.add_scatter3d(**_broken(path), mode="lines", name="edges", hoverinfo="skip",
                         line={"color": "#4d535d", "width": 1.5}, **more)


def _add_section(figure, facets: Found, labels: np.ndarray, cut, colours: dict, axis: int,
                 visible: bool) -> None:
    fine = len(cut.cells) > _FINE
    for label, colour in colours.items():
        chosen = cut.polygons[labels[cut.cells] == label]
        if not len(chosen) or (fine and label == 0):
            continue
        closed = chosen if fine else np.concatenate([chosen, chosen[:, :1]], axis=1)
        figure.add_scatter(**_broken(closed), mode="lines", fill="toself",
                           fillcolor=colour, line={
                               "width": 0 if fine else 0.5, "color": "rgba(139,145,156,0.5)"},
                           hoverinfo="skip", showlegend=False, visible=visible,
                           legendgroup=f"label {label}", row=1, col=axis + 1)
    for name, member, colour, dash, width in (
            ("boundary", facets.outer, MEASURED, None, 1),
            ("found wall", facets.membrane, FOUND, None, 4),
            ("true wall", facets.true, FALSE, "dash", 2)):
        ends = lines(facets.points, facets.triples[member], axis, cut.height)
        if len(ends):
            figure.add_scatter(**_broken(ends), mode="lines", hoverinfo="skip",
                               line={"color": colour, "dash": dash, "width": width},
                               showlegend=False, visible=visible, legendgroup=name, row=1,
                               col=axis + 1)


def _broken(paths: np.ndarray) -> dict[str, np.ndarray]:
    """Paths ``(n, m, d)`` as one line with gaps: its x, y and, for d = 3, z."""
    gaps = np.full((len(paths), 1, paths.shape[2]), np.nan)
    line = np.concatenate([paths, gaps], axis=1).reshape(-1, paths.shape[2]).astype(np.float32)
    return dict(zip("xyz", line.T, strict=False))


def _plane_axes(figure, across: str, up: str, column: int | None = None) -> None:
    """Axes of a plane, um, to the same scale; of one column of subplots."""
    plain = {"constrain": "domain", "showgrid": False, "zeroline": False, "col": column}
    figure.update_xaxes(title=f"{across} (µm)", **plain)
    figure.update_yaxes(title=f"{up} (µm)", **plain,
                        scaleanchor="x" if column in (None, 1) else f"x{column}")


def _plane_mesh(data: MeshData, figure) -> Picture:
    x = data.points[data.cells][..., :2]
    x = np.concatenate([x, x[:, :1]], axis=1)
    tags = np.unique(data.cell_tags)
    for k, tag in enumerate(tags.tolist()):
        figure.add_scatter(**_broken(x[data.cell_tags == tag]), mode="lines", fill="toself",
                           fillcolor=LABELS[k % len(LABELS)], opacity=0.75,
                           line={"width": 0.5 if len(data.cells) < 4 * _FINE else 0,
                                 "color": MEASURED},
                           name=f"cell tag {tag}", hoverinfo="skip", showlegend=k < 12)
    if len(data.interface_facets):
        figure.add_scatter(**_broken(data.points[data.interface_facets][..., :2]), mode="lines",
                           name="membrane", line={"color": FALSE, "width": 2}, hoverinfo="skip")
    _plane_axes(figure, "x", "y")
    figure.update_layout(margin={"t": 16})
    return Picture("mesh", figure, 480, "The mesh, cells coloured by tag.",
                   f"{len(data.cells)} triangles.")
