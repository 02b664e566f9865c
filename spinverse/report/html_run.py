"""The folder of a finished run, read back for a page. For one rank, plain arrays only.

Parts that are not there are None, and `Run.missing` says why in a sentence.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from meshio import vtu

from ..acquisition import Acquisition
from ..acquisition.io import read_acquisition, read_signals
from ..errors import InputError, one_line
from ..mesh import MeshData, readers
from ..mesh.checks import cell_volumes, facets_of, find_facets
from ..mesh.connected import cell_regions
from . import folder

COMMANDS = ("reconstruct", "simulate")
MESH, PERMEABILITY, QUANTITIES = "mesh.npz", "permeability.npz", "quantities.json"
_KEY = np.array([1 << 42, 1 << 21, 1])  # vertex triples as one number
_KNOWN = {"permeability": float, "membrane": bool, "posterior_std": float, "determined": bool}
MOST_CELLS = 48  # that are told apart
PRIOR_STD = 0.5  # of openness, where the summary does not say


@dataclass(frozen=True, eq=False)
class Found:
    """What a reconstruction found, on all facets of its mesh in lexicographic order."""

    points: np.ndarray  # (Nv, 3) um
    cells: np.ndarray  # (Nt, 4), none where only the surface is known
    triples: np.ndarray  # (Nf, 3) vertices of each facet
    outer: np.ndarray  # (Nf,) bool, as the known membrane and the one that was found
    true: np.ndarray
    permeability: np.ndarray  # (Nf,) um/ms
    membrane: np.ndarray
    posterior_std: np.ndarray | None = None  # as the next, of `inversion.uncertainty.Uncertainty`
    determined: np.ndarray | None = None
    prior_std: float = PRIOR_STD
    labels: np.ndarray | None = None  # (Nt,) compartment of each cell
    labels_enclosed: bool = False  # for lack of others: what the found facets enclose, 0 largest
    sides: np.ndarray | None = None  # (Nf, 2) cells beside each facet, -1 for the outside

    @property
    def unknown(self) -> np.ndarray:
        """``(Nf,)`` bool, facets that were looked for, as far as files say."""
        if self.posterior_std is not None and (self.posterior_std > 0).any():
            return self.posterior_std > 0
        return ~self.outer | self.membrane

    @cached_property
    def found_cells(self) -> list[tuple[int, float, np.ndarray]]:
        """Label, volume (um^3) and ``(Nf,)`` bool surface of the found cells, the largest first.

        At most `MOST_CELLS`. Label 0 is no cell; without it, the largest region is none.
        """
        if self.labels is None or self.sides is None:
            return []
        distinct, number = np.unique(self.labels, return_inverse=True)
        volumes = np.bincount(number, np.abs(cell_volumes(self.points, self.cells)))
        order = np.argsort(-volumes, kind="stable")
        outside = 0 if distinct[0] == 0 else order[0]
        beside = np.append(number, outside)[self.sides]  # -1: beyond the mesh
        beyond = self.sides[:, 1] < 0
        return [(int(distinct[k]), float(volumes[k]),
                 (beside == k).any(axis=1) & (beyond | (beside[:, 0] != beside[:, 1])))
                for k in order[order != outside][:MOST_CELLS].tolist()]

    @property
    def bounds(self) -> np.ndarray:
        """Lower and upper corner, ``(2, 3)`` um."""
        return np.array([self.points.min(axis=0), self.points.max(axis=0)])

    @property
    def inside(self) -> np.ndarray:
        """Centre of what lies inside cells, else of the box, ``(3,)`` um."""
        if self.labels is None or self.labels_enclosed or not (self.labels > 0).any():
            centre = self.bounds.mean(axis=0)
        else:
            centre = self.points[self.cells[self.labels > 0]].mean(axis=(0, 1))
        return np.round(centre, 9) + 0.0


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder; what is not there is None."""

    path: Path
    command: str
    summary: dict  # empty for a reconstruction that has not ended
    history: list[dict] | None = None
    acquisition: Acquisition | None = None
    predicted: np.ndarray | None = None  # (N,) normalised magnitudes, as the measured ones
    measured: np.ndarray | None = None
    complex: np.ndarray | None = None  # (N,) the computed signals
    relative: str = ""  # what ``predicted`` is normalised by, in words, where not by S(b = 0)
    mesh: MeshData | None = None
    found: Found | None = None
    quantities: dict | None = None
    missing: dict[str, str] = field(default_factory=dict)  # what could not be read, and why
    notes: tuple[str, ...] = ()  # what was read but is not as it should be


def read_run(path: Path, mesh: Path | None = None) -> Run:
    """Read the folder of a run; ``mesh`` is the file of its mesh, if it is not where it was.

    Raises InputError: no folder of a run, a damaged ``summary.json``, or another ``mesh``.
    """
    if not path.is_dir():
        raise InputError(f"{path}: is a file, expected the folder of a run" if path.exists() else
                         f"{path}: no such folder, expected that of a run")
    summary = _summary(path)
    command = summary.get("command", "reconstruct")
    if command not in COMMANDS:
        raise InputError(f"{path}: was written by spinverse {command}, expected a folder of "
                         "simulate or reconstruct")
    missing: dict[str, str] = {}
    if not summary:
        missing["summary"] = ("There is no summary.json: the run has not ended, or was ended. "
                              "What it was asked and what it found is not known here.")
    reader = _Reader(path, command, summary, missing)
    data, notes = reader.mesh(mesh)
    found = history = None
    if command == "reconstruct":
        found, same = reader.found(data, mesh is not None)
        history = reader.history()
        data, notes = (data, notes) if same else (None, ())
    return Run(path, command, summary, history, **reader.signals(), mesh=data, found=found,
               quantities=reader.quantities(), missing=missing, notes=notes)


def _summary(path: Path) -> dict:
    file = path / folder.SUMMARY
    if not file.is_file():
        if (path / folder.HISTORY).is_file():
            return {}
        raise InputError(f"{path}: holds no {folder.SUMMARY}, expected the folder of a run of "
                         "spinverse simulate or reconstruct")
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({_words(error)}), expected JSON") from None
    if not isinstance(content, dict) or "command" not in content:
        raise InputError(f"{file}: has no key command, expected what a run of spinverse writes")
    return content


class _Reader:
    """The parts of a folder; what is missing is said, not raised."""

    def __init__(self, path: Path, command: str, summary: dict, missing: dict[str, str]):
        self.path, self.command, self.summary, self.missing = path, command, summary, missing

    def tried(self, part: str, file: Path, read, *errors: type[Exception]):
        """What ``read`` makes of a file; None, and a sentence, where it cannot."""
        try:
            return read(file)
        except errors as error:
            self.missing[part] = f"{file.name} cannot be read: {_words(error)}."
            return None

    def history(self) -> list[dict] | None:
        rows = self.tried("history", self.path / folder.HISTORY, folder.read_history,
                          OSError, ValueError, KeyError)
        if rows == []:
            self.missing["history"] = f"{folder.HISTORY} has no rows yet."
        return rows or None

    def quantities(self) -> dict | None:
        file = self.path / QUANTITIES
        return self.tried("quantities", file, lambda path: json.loads(path.read_text()),
                          ValueError) if file.is_file() else None

    def signals(self) -> dict:
        file = self.path / "signals.csv"
        if not file.is_file():
            self.missing["signals"] = "There is no signals.csv in the folder."
            return {}
        try:
            folder.check_rows(file)
            if self.command == "reconstruct":
                return {"measured": _column(file, "measured_normalised"),
                        "predicted": _column(file, "predicted_normalised"),
                        "acquisition": read_acquisition(file)}
            signals = read_signals(file)
        except (InputError, OSError) as error:
            self.missing["signals"] = f"{_words(error)}."
            return {}
        found = {"acquisition": signals.acquisition, "complex": signals.values}
        try:
            return found | {"predicted": signals.normalised}
        except InputError as error:
            largest = max(float(np.max(signals.magnitude)), 1e-300)
            return found | {
                "predicted": signals.magnitude / largest,
                "relative": f"{_words(error)}; values are relative to the largest signal"}

    def mesh(self, given: Path | None) -> tuple[MeshData | None, tuple[str, ...]]:
        """The mesh, and what is to be said of it."""
        said = self.summary.get("inputs", {}).get("mesh", {})
        if given is not None and not given.is_file():
            raise InputError(f"--mesh {given}: no such file")
        where = given if given is not None else next(self._candidates(said), None)
        if where is None:
            self.missing["mesh"] = (
                f"The mesh ({said['path']}) is not where it was, nor beside the folder; --mesh "
                "FILE says where it is." if said.get("path") else
                f"There is no {MESH} in the folder; --mesh FILE says where the mesh is.")
            return None, ()
        repair = bool(at(self.summary, "config", "mesh", "repair"))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = readers.read(where, repair=repair)
        except InputError as error:
            if given is not None:
                raise InputError(f"--mesh {error}") from None
            self.missing["mesh"] = f"The mesh cannot be read: {_words(error)}."
            return None, ()
        if where.name == MESH or said.get("sha256") in (None, folder.sha256(where)):
            return data, ()
        return data, (f"The mesh file {where.name} has another content than at the time of the "
                      "run; its facets are the same.",)

    def _candidates(self, said: dict):
        """Files that may be the mesh: that in the folder, or what the summary names."""
        own = self.path / MESH
        if own.is_file():
            yield own
        if not said.get("path") or "file" not in (at(self.summary, "config", "mesh") or {}):
            return
        # an absolute path stands for itself
        places = dict.fromkeys(base / said["path"]
                               for base in (Path.cwd(), *self.path.absolute().parents))
        there = [place for place in places if place.is_file()]
        yield from (p for p in there if folder.sha256(p) == said.get("sha256"))
        yield from there[:1]

    def found(self, data: MeshData | None, given: bool) -> tuple[Found | None, bool]:
        """What was found, and whether ``data`` is its mesh."""
        file = self.path / PERMEABILITY
        if not file.is_file():
            self.missing["permeability"] = f"There is no {file.name}: nothing was found yet."
            return None, True
        # zip, key and header errors have no common base
        values = self.tried("permeability", file, _facet_values, Exception)
        if values is None:
            return None, True
        facets, known = values
        prior = at(self.summary, "uncertainty", "prior_std") or PRIOR_STD
        if data is None or data.dim != 3:
            return self._surface_only(known, prior), True
        triples, pairs = facets_of(data.cells, data.name)
        if at(self.summary, "config", "tissue", "boundary") == "periodic":
            # of opposite faces the file has the facets of one
            place = find_facets(data.input_vertices[triples], facets)
            triples, pairs = triples[place], pairs[place]
        if not np.array_equal(facets, data.input_vertices[triples]):
            text = f"{len(facets)} facets in {file.name} that are not those of mesh {data.name}"
            if given:
                raise InputError(f"--mesh: {text}, expected the mesh of the run")
            self.missing["mesh"] = f"{text}."
            return self._surface_only(known, prior), False
        labels, enclosed = self._labels(data, pairs, known["membrane"])
        true = np.isin(triples @ _KEY, data.interface_facets @ _KEY)
        return Found(data.points, data.cells, triples, pairs[:, 1] < 0, true, **known,
                     prior_std=prior, labels=labels, labels_enclosed=enclosed, sides=pairs), True

    def _surface_only(self, known: dict, prior: float) -> Found | None:
        """Facets from the .vtu, whose points know no cells and no truth."""
        try:
            read = vtu.read(self.path / "permeability.vtu")  # meshio.read would exit over it
            triples = read.cells_dict["triangle"].astype(np.int64)
        except Exception:  # parsers raise what they like
            return None
        if len(triples) != len(known["permeability"]):
            return None
        nowhere = np.zeros(len(triples), bool)
        return Found(read.points, np.empty((0, 4), np.int64), triples, nowhere, nowhere, **known,
                     prior_std=prior)

    def _labels(self, data: MeshData, pairs: np.ndarray,
                membrane: np.ndarray) -> tuple[np.ndarray, bool]:
        """Labels of the cells, and whether they are enclosed regions."""
        for read in (lambda: vtu.read(self.path / folder.CELLS).cell_data["label"][0],
                     lambda: np.load(self.path / folder.CHECKPOINT)["labels"]):
            try:
                labels = np.asarray(read())
            except Exception:  # damaged or not there: the facets say enough
                continue
            if labels.shape == (len(data.cells),):
                return labels.astype(np.int64), False
        regions = cell_regions(len(data.cells), pairs, membrane)
        volumes = np.bincount(regions, weights=np.abs(cell_volumes(data.points, data.cells)))
        rank = np.argsort(np.argsort(-volumes, kind="stable"))
        return rank[regions], True


def _facet_values(file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vertex triples, and what is known of each of them."""
    with np.load(file, allow_pickle=False) as content:
        values = {name: content[name] for name in content.files}
    facets = values["facets"]
    known = {name: values[name].astype(kind) for name, kind in _KNOWN.items()
             if name in values and values[name].shape == facets.shape[:1]}
    known["permeability"], known["membrane"]
    return facets, known


def _column(file: Path, name: str) -> np.ndarray:
    rows = folder.read_rows(file)
    if not rows or name not in rows[0]:
        raise InputError(f"{file.name} has no column {name}")
    try:
        return np.array([float(row[name]) for row in rows])
    except (TypeError, ValueError):
        raise InputError(f"{file.name} has a cell that is no number") from None


def at(tree, *keys):
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _words(error) -> str:
    return one_line(error).rstrip(".")
