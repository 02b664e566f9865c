"""A run's folder: what is in it, and how it appears all at once.

``simulate`` writes into a sibling of its folder and renames that. ``reconstruct`` makes its folder
when all inputs have been read; every file in it appears complete or not at all, the summary last.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from ..acquisition import Signals
from ..acquisition.io import write_signals
from ..atomic import replace
from ..errors import InputError, on_root
from ..inversion import Progress, State
from ..inversion.facets.memory import Memory
from ..mesh import Mesh
from ..parallel.npz import NpzReader, Rows, write_npz

SUMMARY, HISTORY, CHECKPOINT = "summary.json", "history.csv", "checkpoint/latest.npz"
PREVIOUS = "previous.npz"  # beside it
CELL_TABLE = "cells.csv"  # the cells that were found, in numbers
SURFACE = "surface.stl"  # of the cells that were found, smooth
POSTERIOR = "posterior.npz"  # samples of shapes and numbers
CELLS = "cells.vtu"  # with a label on each cell, in the order of the input
_MEMORY = "memory/"  # of a checkpoint's arrays
_OVER_MESH, _FACETS = ("facets", "permeability_um_per_ms", "labels"), _MEMORY + "facets/"
#: Of history.csv, with those of priors after data.
COLUMNS = ("stage", "iteration", "phase", "loss", "data", "gradient_norm", "step", "seconds")
_ROWS = "measurements"  # a column of signals.csv: how many rows the table has


# ---- making the folder ----------------------------------------------------------------------

def check_output(path: Path, force: bool = False, resume: bool = False) -> None:
    """Raise InputError if ``path`` cannot become the folder of this run; only runs are replaced."""
    if path.exists() and not path.is_dir():
        raise InputError(f"-o {path}: is a file, expected a folder")
    if path.is_dir() and any(path.iterdir()) and not resume:
        if not force:
            ways = "--force to overwrite it"
            if (path / CHECKPOINT).is_file():
                ways = f"--resume to go on with the run in it, {ways}"
            raise InputError(f"-o {path}: exists and is not empty, expected a new folder (or "
                             f"{ways})")
        if not any((path / name).exists() for name in (SUMMARY, HISTORY, CHECKPOINT)):
            raise InputError(f"-o {path}: holds no spinverse run, expected one for --force")
    try:
        places = path.absolute(), *path.absolute().parents
        above = next(p for p in places[not resume:] if p.exists())
        if not above.is_dir():
            raise InputError(f"-o {path}: {above} is a file, expected a folder")
        with tempfile.TemporaryFile(dir=above):  # permissions alone do not tell
            pass
    except OSError as error:
        raise InputError(f"-o {path}: {above} cannot be written to ({error.strerror}), expected a "
                         "place for a new folder") from None


def make(path: Path) -> None:
    """Make the folder; what was there before goes."""
    with _moved_away(path):
        (path / CHECKPOINT).parent.mkdir(parents=True)


@contextmanager
def appearing(path: Path):
    """Yield a temporary sibling of ``path`` that takes its place when the block ends well."""
    made = [p for p in path.absolute().parents if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(path, "partial")
    partial.mkdir()
    try:
        yield partial
        with _moved_away(path):
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for above in made:
            if above.is_dir() and not any(above.iterdir()):
                above.rmdir()
        raise


@contextmanager
def _moved_away(path: Path):
    """What was there before goes when the block ends well."""
    old, there = _sibling(path, "old"), path.exists()
    if there:
        path.rename(old)
    yield
    if there:
        shutil.rmtree(old)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}-{os.getpid()}")


# ---- files ----------------------------------------------------------------------------------

def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(values: dict) -> str:
    """Hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Strict JSON, so inf and nan are strings."""
    text = json.dumps(_plain(content), indent=2) + "\n"
    replace(path, lambda temporary: temporary.write_text(text))


def write_table(path: Path, signals: Signals, **more: np.ndarray) -> None:
    """The csv of `acquisition.io.write_signals` with further columns, ``(N,)`` each.

    The last one is the number of rows, by which `check_rows` notices a file that lost some.
    """
    def write(temporary: Path) -> None:
        write_signals(temporary, signals)
        lines = temporary.read_text().splitlines()
        first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        lines[first] = ",".join([lines[first], *more, _ROWS])
        for row in range(len(signals)):
            cells = (repr(float(column[row])) for column in more.values())
            lines[first + 1 + row] += "," + ",".join([*cells, str(len(signals))])
        temporary.write_text("\n".join(lines) + "\n")

    replace(path, write)


def check_rows(path: Path) -> None:
    """Raise InputError if a csv table says how many measurements it has and has another number."""
    rows = read_rows(path) if path.suffix.lower() == ".csv" else []
    said = rows[0].get(_ROWS) if rows else None
    if said is not None and said.strip() != str(len(rows)):
        raise InputError(f"{path}: {len(rows)} rows, expected {said} as its column {_ROWS} says")


def read_rows(path: Path) -> list[dict]:
    """Rows of a csv table, comments and empty lines left out; cells are text."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(line for line in file if line.strip() and line[0] != "#"))


class History:
    """``history.csv``, one row an iteration, appended to ``keep``, those of an earlier part."""

    def __init__(self, path: Path, priors: list[str], keep: Iterable[dict] = ()):
        self.path = path
        self.columns = [*COLUMNS[:5], *priors, *COLUMNS[5:]]
        self.rows = list(keep)
        text = [",".join(self.columns), *map(self._line, self.rows)]
        replace(path, lambda temporary: temporary.write_text("\n".join(text) + "\n"))

    def add(self, item: Progress) -> None:
        """Append an iteration."""
        row = dict(zip(COLUMNS, (item.stage, item.iteration, item.phase, item.loss, item.data,
                                 item.gradient, item.step, item.seconds), strict=True))
        row |= item.priors
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(self._line(row) + "\n")

    def _line(self, row: dict) -> str:
        return ",".join(str(row.get(name, "")) for name in self.columns)


def read_history(path: Path) -> list[dict]:
    """Rows of a ``history.csv``, numbers as numbers, without empty cells or a row cut short."""
    with path.open(newline="") as file:
        return [{key: value if key in ("stage", "phase") else int(value) if key == "iteration"
                 else float(value) for key, value in row.items() if value}
                for row in csv.DictReader(file) if row["seconds"]]


# ---- checkpoints ----------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a reconstruction is; of arrays over the mesh, the rows that this rank has read."""

    stage: int  # number of the one to go on with
    iteration: int  # the last one that is done
    triples: np.ndarray  # (n, 3), for `Mesh.scatter_facets`, as the next
    permeability: np.ndarray  # (n,) um/ms
    stages: tuple[str, ...]  # all names
    inputs: dict[str, str]  # sha256 by name
    memory: dict[str, np.ndarray] | None = None  # the optimiser's, for `Memory.scattered`
    labels: np.ndarray | None = None  # (n,) of cells, for `Mesh.cell_slabs`
    theta: dict[str, float] = dataclasses.field(default_factory=dict)  # unknown numbers
    note: str = ""  # what was wrong with the files


def save_checkpoint(folder: Path, mesh: Mesh, state: State, stage: int, iteration: int,
                    stages: list[str], inputs: dict[str, str],
                    memory: Memory | None = None) -> None:
    """Write ``checkpoint/latest.npz``; what had that name becomes ``previous.npz``. Collective.

    Arguments are as in `Checkpoint`; ``memory`` is the optimiser's, in the middle of a stage.
    """
    arrays: dict[str, Any] = {
        "stage": np.array(stage), "iteration": np.array(iteration),
        "facets": Rows(mesh.facet_slabs.keys),
        "permeability_um_per_ms": Rows(mesh.facet_slabs.collect(state.permeability)),
        "stages": np.array(stages), "inputs": np.array(json.dumps(inputs)),
        "theta": np.array(json.dumps(dict(state.theta)))}
    if state.labels is not None:
        arrays["labels"] = Rows(mesh.cell_slabs.collect(np.asarray(state.labels, dtype=np.int32)))
    for name, value in ({} if memory is None else memory.in_slabs(mesh)).items():
        if name != "triples":  # they are `facets`
            arrays[_MEMORY + name] = Rows(value) if name.startswith("facets/") else value
    latest = folder / CHECKPOINT

    def keep() -> None:
        if latest.is_file():
            replace(latest.with_name(PREVIOUS), lambda path: _link(latest, path))

    on_root(mesh.comm, keep)
    write_npz(mesh.comm, latest, arrays)


def load_checkpoint(folder: Path, stages: list[str], inputs: dict[str, str],
                    comm: MPI.Comm = MPI.COMM_SELF) -> Checkpoint | None:
    """The checkpoint of a folder, None where there is none yet. Collective over ``comm``.

    Where ``latest.npz`` is damaged, ``previous.npz`` serves, and `Checkpoint.note` says so. Raises
    InputError: neither can be read, or it belongs to other stages or inputs.
    """
    latest = folder / CHECKPOINT
    if not comm.bcast(on_root(comm, _is_there, folder)):
        return None
    try:
        found = _read_checkpoint(latest, comm)
    except InputError as damage:
        try:
            found = _read_checkpoint(latest.with_name(PREVIOUS), comm)
        except InputError:
            raise damage from None
        found = dataclasses.replace(found, note=f"{damage}; went on from {PREVIOUS}")
    if list(found.stages) != list(stages):
        raise InputError(f"--resume: the run in {folder} has stages {', '.join(found.stages)}, "
                         f"expected {', '.join(stages)} as in the run file")
    for name, value in inputs.items():
        if found.inputs.get(name) != value:
            raise InputError(f"--resume: {name} is not what the run in {folder} began with, "
                             "expected the same input")
    return found


def _is_there(folder: Path) -> bool:
    latest = folder / CHECKPOINT
    if latest.is_file() or latest.with_name(PREVIOUS).is_file():
        return True
    if folder.is_dir() and any(folder.iterdir()) and not (folder / HISTORY).is_file():
        raise InputError(f"-o {folder}: holds no spinverse run, expected one for --resume")
    return False


def _read_checkpoint(path: Path, comm: MPI.Comm) -> Checkpoint:
    try:
        with NpzReader(comm, path) as file:
            arrays = {name: file.rows(name) if name in _OVER_MESH or name.startswith(_FACETS)
                      else file.whole(name) for name in file.names}
    except Exception as error:  # zip, stream, key and header errors have no common base
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}), "
                         "expected a checkpoint") from None
    try:
        memory = {name.removeprefix(_MEMORY): value for name, value in arrays.items()
                  if name.startswith(_MEMORY)}
        return Checkpoint(int(arrays["stage"]), int(arrays["iteration"]), arrays["facets"],
                          arrays["permeability_um_per_ms"], tuple(map(str, arrays["stages"])),
                          json.loads(str(arrays["inputs"])),
                          {**memory, "triples": arrays["facets"]} if memory else None,
                          arrays.get("labels"), json.loads(str(arrays["theta"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no {error}, expected a checkpoint") from None


def _link(old: Path, new: Path) -> None:
    """A second name for a file; a copy where the file system has no such thing."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _plain(value):
    """Anything of ours as what strict JSON can say."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    unsayable = isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value))
    return str(value) if unsayable else value
