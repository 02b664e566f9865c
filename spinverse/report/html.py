"""One self-contained HTML page of a run: `write_page`. plotly and jinja2 are an optional extra."""

from __future__ import annotations

import base64
import io
import json
import math
from datetime import datetime
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import SpinverseError
from ..interface.metrics import compare
from ..mesh import MeshData
from ..units import describe_range, permeability_from_internal
from . import folder
from .html_parts import Picture, Section, Table, number
from .html_run import Found, Run, at, read_run

PAGE = "report.html"
TEMPLATE = "html_page.html.j2"
DETERMINED = ("A facet is determined where the signals would notice, by three standard deviations "
              "of their noise or more, that it is toggled from wall to open or back, however well "
              "all other facets make up for it.")
#: How the interface was chosen without a cut, by the rule.
RULES = {
    "search for shapes": "The interface comes from a search for shapes: a facet is a wall or open, "
                         "and no cut was used.",
    "compartments": "The interface lies between compartments, which were found from the slow "
                    "diffusion modes: no cut was used."}
#: What figures of a reconstruction mean, by their key in ``summary.json``.
METRICS = {
    "precision": "share of the found facets that are true",
    "recall": "share of the true facets that were found",
    "f1": "harmonic mean of the two",
    "iou": "found and true, over found or true",
    "aligned_f1": "F1 after the best shift and reflection, which magnitudes cannot see",
    "aligned_iou": "the same of the IoU",
    "auc": "by ranking permeabilities, whatever the cut; 0.5 is chance",
    "best_f1": "F1 at the best cut of the permeability",
    "chamfer": "mean squared distances of the surfaces, both centred, µm²",
    "chamfer_uncentred": "the same without centring, µm²",
    "found": "interior facets found",
    "true": "interior facets of the true membrane",
    "false_positives": "found, not true",
    "false_negatives": "true, not found",
    "open_edges_percent": "edges of the interface where it ends, %",
    "branch_edges_percent": "edges where more than two facets meet, %",
    "adjusted_rand_index": "agreement of the two partitions of the mesh; 1 is the same",
    "membrane_below_percent": "true facets below 1 µm/ms, %",
    "other_above_percent": "other facets not below it, %",
}


def write_page(run: Run | str | Path, mesh: str | Path | None = None) -> Path:
    """Write ``report.html`` into the folder of a run; returns its path. For one rank.

    Args:
        run: folder of a run of ``simulate`` or ``reconstruct``, or what `html_run.read_run` read.
        mesh: with a folder: file of the mesh, where it is no longer where it was.

    Raises:
        InputError: see `html_run.read_run`.
        SpinverseError: plotly or jinja2 is not installed.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SpinverseError(f"report: {error.name} is not installed "
                             "(pip install 'spinverse[report]')") from None
    if not isinstance(run, Run):
        run = read_run(Path(run), None if mesh is None else Path(mesh))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    sections = _reconstruction(run) if run.command == "reconstruct" else _simulation(run)
    drawn = any(section.pictures for section in sections)
    text = environment.get_template(TEMPLATE).render(
        title=run.path.absolute().name, command=run.command, headline=_headline(run),
        verdict=run.summary.get("verdict") or {},
        sections=sections, notes=run.notes, figure=_figure_json,
        still=lambda png: "data:image/png;base64," + base64.b64encode(png).decode(),
        library=get_plotlyjs().replace("</script", "<\\/script") if drawn else "",
        written=datetime.now().astimezone().isoformat(" ", "minutes"), version=__version__)
    target = run.path / PAGE
    folder.replace(target, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return target


def _figure_json(picture: Picture) -> str:
    """Data and layout, safe inside a script element."""
    content = json.loads(picture.figure.to_json())
    content["layout"].pop("template", None)  # the page has its own, light and dark
    content["layout"]["height"] = picture.height
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _reconstruction(run: Run) -> list[Section]:
    from . import html_posterior, html_signals, html_surface

    axis = "|S| / |S(b = 0)|"
    found, explained = run.found, at(run.summary, "verdict", "explained")
    shown = None if found is None else html_surface.cells(found, _still(found, explained))
    words = _why(run, "permeability") or _why(run, "mesh") or (
        "Facets, and what was found on them, could not be read.",)
    if found is not None:
        words = () if shown else ("No cell was found.",) if found.labels is not None else (
            "Which cells were found is not known here, only their walls.",)
    sections = [Section("result", "What was found", words, _there(shown),
                        (*((_cells(found),) if shown else ()), *_numbers(run))), _metrics(run)]
    if run.acquisition is None:
        sections.append(Section("signals", "Signals", _why(run, "signals")))
    else:
        data = run.acquisition, run.predicted, run.measured
        residual = run.predicted - run.measured
        sections.append(Section(
            "signals", "Measured and predicted signals", (),
            _there(html_signals.by_b(*data, axis), html_signals.by_direction(*data, axis),
                   html_signals.scatter(*data)), (html_signals.table(*data),)))
        ball = html_signals.sphere(run.acquisition, residual)
        sections.append(Section(
            "residual", "Residual by direction",
            () if ball else ("The residual is zero." if not residual.any() else
                             "No b-value has three directions, so there is no sphere to show.",),
            _there(ball), (_worst(run, residual),)))
    if found is not None:
        still = None if shown else _still(found, explained)
        certain = () if found.determined is None else (DETERMINED,) if explained is not False \
            else ("The data are not explained, so nothing is determined.",)
        sections.append(Section(
            "interface-section", "The interface, facet by facet", (*_why(run, "mesh"), *certain),
            (html_surface.interface(found, explained, still),), (_certainty(run, found),)))
        cells = html_surface.planes(found)
        sections.append(Section(
            "planes-section", "Cross-sections",
            () if cells else ("There are no cells to cut: " + (" ".join(_why(run, "mesh")) or
                              "their labels are not known."),), _there(cells)))
        # a search for shapes has walls and open facets, and nothing in between to cut
        rule, cut = _rule(run)
        sections.append(Section("facets", "Permeability of the facets", (),
                                (html_surface.histogram(found, cut, rule),)))
    if posterior := html_posterior.section(run.path, found):
        sections.insert(2, posterior)
    endings = run.summary.get("stage_endings") or {}
    history = None if run.history is None else html_signals.history(run.history)
    return [*sections, Section(
        "misfit-section", "Misfit", (*(f"Stage {name}: {why}." for name, why in endings.items()),
                                     *_why(run, "history")), _there(history)),
            _asked(run), _effort(run)]


def _simulation(run: Run) -> list[Section]:
    from . import html_signals, html_surface

    line = run.mesh is not None and run.mesh.dim == 1
    sections = [_asked(run), Section(
        "mesh-section", "Mesh",
        ("The mesh is one-dimensional; there is nothing to draw.",) if line else _why(run, "mesh"),
        () if line or run.mesh is None else (html_surface.mesh(run.mesh),),
        () if run.mesh is None else (_counts(run.mesh),))]
    if run.acquisition is None:
        sections.append(Section("signals", "Signals", _why(run, "signals")))
    else:
        data = run.acquisition, run.predicted, None
        axis = "|S| / |S(b = 0)|" if not run.relative else "|S| over the largest"
        turned = np.abs(run.complex.imag).max() > 1e-3 * max(np.abs(run.complex).max(), 1e-300)
        words = (f"{run.relative}.",) if run.relative else ()
        by_direction = html_signals.by_direction(*data, axis)
        if by_direction is None:
            words += ("No b-value has three directions, so signals are shown by b alone.",)
        sections.append(Section(
            "signals", "Signals", words,
            _there(html_signals.by_b(*data, axis), by_direction,
                   html_signals.phases(run.acquisition, run.complex) if turned else None),
            (html_signals.table(*data),)))
    words = () if run.quantities else _why(run, "quantities") or ("None were asked for.",)
    tables = tuple(table for name, value in (run.quantities or {}).items()
                   for table in _quantity(name, value))
    return [*sections, Section("quantities", "Derived quantities", words, (), tables),
            _effort(run)]


def _headline(run: Run) -> list[tuple[str, str]]:
    """The figures that a reader looks for first: (number, what it is)."""
    summary = run.summary
    if run.command == "simulate":
        items = [(summary.get("measurements"), "signals"),
                 (summary.get("unknowns"), "unknowns"),
                 (summary.get("estimated_error"), "estimated error of S/S₀")]
    else:
        cells = 0 if run.found is None or run.found.labels_enclosed else len(run.found.found_cells)
        items = [(cells or None, "cell found" if cells == 1 else "cells found"),
                 (at(summary, "interface", "facets"), "facets in the interface"),
                 (summary.get("data_misfit"), "data misfit"),
                 (at(summary, "metrics", "f1"), "F1 against the truth"),
                 (at(summary, "metrics", "aligned_f1"), "F1, aligned")]
    total = sum(value for key, value in (summary.get("seconds") or {}).items()
                if isinstance(value, float) and ": " not in key)
    ranks = summary.get("ranks")
    items += [(_duration(total) if total else None, "in all"),
              (ranks, "rank" if ranks == 1 else "ranks")]
    return [(number(value, 3), words) for value, words in items if value is not None]


def _asked(run: Run) -> Section:
    import yaml

    summary, tables = run.summary, []
    config, words = summary.get("config"), _why(run, "summary")
    if config:
        tables.append(Table("In short", ("", ""), tuple(_short(config))))
    if inputs := summary.get("inputs"):
        tables.append(Table("Inputs", ("input", "file", "sha256"), tuple(
            (name, item.get("path", "–"), item.get("sha256", "–")[:16])
            for name, item in inputs.items())))
    if stack := summary.get("stack"):
        tables.append(Table("Versions", ("package", "version"), (
            ("spinverse", str(summary.get("spinverse", "–"))),
            *((name, str(value)) for name, value in stack.items()))))
    code = () if not config else (("The run file as it was understood", yaml.safe_dump(
        config, sort_keys=False, allow_unicode=True, default_flow_style=None, width=96)),)
    if not tables:
        words = words or ("summary.json does not say.",)
    return Section("asked", "What was asked", words, (), tuple(tables), code)


def _short(config: dict):
    """The main choices of a run file, a row each."""
    mesh = config.get("mesh") or {}
    yield "mesh", ", ".join(f"{key}: {_plain(value)}" for key, value in mesh.items())
    for key, value in (config.get("tissue") or {}).items():
        if value not in ("", None):
            yield f"tissue: {key}", _plain(value)
    for section in config.get("acquisition") or ():
        for kind, values in section.items():
            if values is not None:
                yield "acquisition", f"{kind}: {_plain(values)}"
    for key in ("signals", "stages", "interface", "engine", "modes", "degree", "tolerance",
                "time_step_ms"):
        value = config.get(key)
        if key == "stages" and isinstance(value, list):
            value = ", ".join(str(s.get("name", i)) if isinstance(s, dict) else str(s)
                              for i, s in enumerate(value))
        if value is not None:
            yield key, _plain(value)


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        if len(value) > 12:
            return f"{len(value)} values"
        return "[" + ", ".join(_plain(v) for v in value) + "]"
    return number(value, 6) if isinstance(value, float) else str(value)


def _rule(run: Run) -> tuple[str, float | None]:
    """How the interface was chosen, in words, and the cut if there was one."""
    rule, cut = (at(run.summary, "interface", key) for key in ("rule", "cut_um_per_ms"))
    if isinstance(cut, float | int) and math.isfinite(cut):
        words = "Facets below a cut are the interface" + (
            ", and the cut was found from the gap in this histogram." if rule == "automatic"
            else ".")
        return words, float(cut)
    return RULES.get(rule, "summary.json does not say how the interface was chosen."), None


def _cells(found: Found) -> Table:
    corners, rows = found.points[found.triples], []
    areas = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0],
                                          corners[:, 2] - corners[:, 0]), axis=1)
    for label, volume, surface in found.found_cells:
        kappa, area = found.permeability[surface & found.membrane], float(areas[surface].sum())
        wall = describe_range(kappa, 3) if len(kappa) else "–"
        rows.append((str(label), f"{volume:.4g}", f"{area:.4g}", f"{area / volume:.3g}", wall))
    return Table("Cells", ("label", "volume (µm³)", "surface (µm²)", "S/V (1/µm)",
                           "wall permeability (µm/ms)"), tuple(rows), open=len(rows) <= 24)


def _numbers(run: Run) -> list[Table]:
    """What is known of the cells, with intervals."""
    cells = at(run.summary, "cells", "cells") or []
    rows = [(f"{row['cell']}", name.replace("_", " "), f"{row[name]:.4g}",
             f"{row[name + '_low']:.4g} to " + ("∞" if row[name + "_high"] is None else
                                                  f"{row[name + '_high']:.4g}"))
            for row in cells for name in row if name + "_low" in row]
    level = at(run.summary, "cells", "level")
    return [Table(f"Cells in numbers, with {100 * level:.0f} % intervals",
                  ("cell", "", "value", "interval"), tuple(rows))] if rows else []


def _certainty(run: Run, facets: Found) -> Table:
    said, found = run.summary.get("uncertainty") or {}, facets.membrane
    rows = [("facets in the interface", str(found.sum()))]
    if facets.determined is not None:
        rows += [("of these determined by the signals", str((found & facets.determined).sum())),
                 ("of these undetermined", str((found & ~facets.determined).sum()))]
    if facets.posterior_std is not None and found.any():
        std = facets.posterior_std[found]
        rows.append(("posterior standard deviation of their openness",
                     f"{describe_range(std, 3)}, median {np.median(std):.3g}"))
    rows += [(words, number(said[key])) for key, words in (
        ("sigma", "noise of the normalised signals that was assumed"),
        ("directions", "combinations of facets that the signals determine")) if key in said]
    kappa = facets.permeability[found]
    if len(kappa):
        rows.append(("their permeability", f"{describe_range(kappa, 3)} µm/ms "
                     f"({describe_range(permeability_from_internal(kappa), 3)} m/s)"))
    return Table("What is known of it", ("", ""), tuple(rows))


def _worst(run: Run, residual: np.ndarray) -> Table:
    from .html_signals import _direction

    worst = np.argsort(-np.abs(residual), kind="stable")[:8]
    a = run.acquisition
    return Table("The largest differences", ("row", "b (s/mm²)", "direction", "measured",
                                            "predicted", "difference"), tuple(
        (str(i), f"{a.b[i]:.0f}", _direction(a.directions[i]), f"{run.measured[i]:.5f}",
         f"{run.predicted[i]:.5f}", f"{residual[i]:+.2e}") for i in worst.tolist()), open=False)


def _metrics(run: Run) -> Section:
    metrics, words = run.summary.get("metrics"), ()
    known = run.mesh is not None and run.found is not None and run.found.true.any()
    if not metrics and known:  # the run's mesh did not know it, the one that was given does
        metrics = compare(run.mesh, run.found.triples, run.found.membrane,
                          run.found.permeability,
                          at(run.summary, "config", "tissue", "boundary") or "absorbing")
        words = ("The run knew no true membrane; the mesh that was read now does.",)
    if not metrics:
        return Section("metrics", "Metrics", (
            "The mesh knows no true membrane, so there is nothing to compare with."
            if run.summary else "The run has not ended.",))
    rows = [(key, number(metrics.get(key)), words) for key, words in METRICS.items()
            if key in metrics]
    rest = [(key, _plain(value), "") for key, value in metrics.items() if key not in METRICS]
    tables = [Table("Against the true membrane", ("metric", "value", "what it is"), tuple(rows))]
    if rest:
        tables.append(Table("All others", ("metric", "value", ""), tuple(rest), open=False))
    return Section("metrics", "Metrics", words, (), tuple(tables))


def _effort(run: Run) -> Section:
    seconds = run.summary.get("seconds") or {}
    rows = [(key, f"{value:.2f} s") for key, value in seconds.items()
            if isinstance(value, float | int)]
    if memory := run.summary.get("peak_memory_per_rank"):
        rows.append(("memory, most on a rank", f"{max(memory):.0f} MiB"))
    rows += [(key.replace("_", " "), number(run.summary[key]))
             for key in ("modes", "evaluations", "unknowns", "estimated_error")
             if run.summary.get(key) is not None]
    return Section("effort", "Time and memory", () if rows else ("summary.json does not say.",),
                   (), (Table("", ("", ""), tuple(rows)),) if rows else ())


def _counts(data: MeshData) -> Table:
    size = ", ".join(f"{v:.4g}" for v in np.ptp(data.points, axis=0)[: data.dim])
    return Table("", ("", ""), (
        ("cells", str(len(data.cells))), ("vertices", str(len(data.points))),
        ("size (µm)", size), ("facets of a membrane", str(len(data.interface_facets))),
        ("cell tags", _plain(np.unique(data.cell_tags).tolist()))))


def _quantity(name: str, value) -> list[Table]:
    """A quantity as tables: lists of records are tables of their own, the rest key and value."""
    if not isinstance(value, dict):
        value = {name: value}
    tables, rows = [], []
    for key, item in value.items():
        if isinstance(item, list) and item and all(isinstance(each, dict) for each in item):
            head = tuple(dict.fromkeys(k for each in item for k in each))
            body = tuple(tuple(_cell(each.get(k)) for k in head) for each in item)
            tables.append(Table(f"{name}: {key}", head, body, open=len(body) <= 12))
        elif item not in ([], {}, None):
            rows.append((key, _cell(item)))
    if rows:
        tables.insert(0, Table(name, ("", ""), tuple(rows)))
    return tables


def _cell(value) -> str:
    if isinstance(value, list) and any(isinstance(v, list | dict) for v in value):
        return "; ".join(_cell(v) for v in value[:12]) + (" ..." if len(value) > 12 else "")
    if isinstance(value, list):
        return "[" + ", ".join(number(v) for v in value[:24]) + (
            ", ...]" if len(value) > 24 else "]")
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    return number(value)


def _still(found: Found, explained: bool | None) -> bytes | None:
    """The interface as a picture, for paper; None without matplotlib."""
    from . import plots

    stream = io.BytesIO()
    try:
        plots.of_found(stream, found, explained, dpi=90)
    except ImportError:
        return None
    return stream.getvalue()


def _why(run: Run, part: str) -> tuple[str, ...]:
    return (run.missing[part],) if part in run.missing else ()


def _there(*pictures: Picture | None) -> tuple[Picture, ...]:
    return tuple(picture for picture in pictures if picture is not None)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
