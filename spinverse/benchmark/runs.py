"""One reconstruction of the benchmark: its files, its process, and what came out.

A benchmark's folder holds

    targets/NAME/grid.npz                 the mesh without its membrane: all that a method sees
    targets/NAME/truth.npz                with it; fine.npz: the true shape on a mesh of its own
    signals/NAME/SETTING/simulated/       of ``spinverse simulate``
    signals/NAME/SETTING/snr50-seed0.npz
    runs/NAME/SETTING/snr50-seed0/METHOD/ run.yaml, log.txt, run.json, metrics.json, and
                                          found/, the folder of ``spinverse reconstruct``

where SETTING is as ``absorbing-published``, with ``-fine`` where the target has its own mesh.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..acquisition import Signals
from ..acquisition.io import read_signals, write_signals
from ..errors import InputError, SolverError
from ..interface.metrics import compare
from ..inversion.verdict import NOT_EXPLAINED
from ..mesh import readers
from ..mesh.checks import find_facets
from ..mesh.data import MeshData
from ..mesh.readers import write_npz
from ..report import folder as run_folder
from . import fine
from .coverage import covered
from .methods import Method
from .processes import Outcome, spinverse
from .targets import LEAKY, Target

WALL, ELSEWHERE = 0.01, 100.0  # um/ms: 1e-5 and 0.1 m/s, as published
PATCH = 1.0  # um/ms, of a patch of the wall that leaks
DIFFUSIVITY = 2.0  # um^2/ms
NO_T2 = (float("inf"), float("inf"))  # ms, inside and outside
UNITS = ("um^3", "arbitrary")
FACTOR = 0.37  # of arbitrary units over um^3: nothing that a method could guess
#: Of the targets' signals; the surface of a fine mesh leaves more than its modes do.
TOLERANCES = {"grid": 1e-5, "fine": 1e-4}
#: Sections of a run file. ``published``: 540 measurements of three sequences, b to 5000 s/mm^2;
#: ``rich``: 2700 of five, b to 40,000 s/mm^2 (gradients up to 2.3 T/m); ``ogse``: 540, the shortest
#: sequence of the published ones replaced by cosines of 100 Hz, b to 2000 s/mm^2.
ACQUISITIONS: dict[str, dict[str, Any]] = {
    "published": {"pgse": {
        "b_s_per_mm2": [0, 1000, 2000, 3000, 4000, 5000], "directions": 30,
        "delta_ms": [5, 10, 10], "Delta_ms": [6, 20, 60]}},
    "rich": {"pgse": {
        "b_s_per_mm2": [0, 1000, 2000, 3000, 4000, 5000, 10000, 20000, 40000], "directions": 60,
        "delta_ms": [5, 5, 10, 10, 10], "Delta_ms": [6, 20, 20, 60, 120]}},
    "ogse": {"pgse": {
        "b_s_per_mm2": [0, 1000, 2000, 3000, 4000, 5000], "directions": 30,
        "delta_ms": [10, 10], "Delta_ms": [20, 60]},
        "ogse": {"b_s_per_mm2": [0, 400, 800, 1200, 1600, 2000], "directions": 30,
                 "delta_ms": 20, "Delta_ms": 25, "periods": 2, "kind": "cos"}}}
BOUNDARIES = ("absorbing", "reflecting", "periodic")
TARGET_MESHES = ("grid", "fine")
#: States of a run; those that end early are as in `Outcome.ended`, with "interrupted".
DONE, FAILED, LIMIT, RUNNING = "ok", "failed", "time limit", "running"


@dataclass(frozen=True)
class Data:
    """What signals are of, with an acquisition of `ACQUISITIONS`.

    ``target_mesh`` "grid": on the mesh of the reconstruction; "fine": on one of the true shape.
    ``wall``: permeability, um/ms; ``inside`` and ``outside``: diffusivities, um^2/ms; ``T2``: ms,
    inside and outside; ``density``: inside over outside; ``echo_time``: ms, of each sequence or of
    all, None for the end of its pulses; ``units``: "um^3", or "arbitrary".
    """

    target: str
    boundary: str
    acquisition: str = "published"
    target_mesh: str = "grid"
    wall: float = WALL
    inside: float = DIFFUSIVITY
    outside: float = DIFFUSIVITY
    T2: tuple[float, float] = NO_T2
    density: float = 1.0
    echo_time: tuple[float, ...] | None = None
    units: str = "um^3"

    @property
    def normalisation(self) -> str:
        """What predictions are divided by, as in a run file."""
        # the rougher surface of the grid leaves less at b = 0 after leaks
        return "auto" if self.units != "um^3" else (
            "measured" if self.target_mesh == "grid" else "own")

    @property
    def on_grid(self) -> Data:
        """The same on the mesh of the reconstruction."""
        return replace(self, target_mesh="grid")

    @property
    def setting(self) -> str:
        """The name of its folders."""
        end = "" if self.target_mesh == "grid" else f"-{self.target_mesh}"
        if self.wall != WALL:
            end += f"-wall{self.wall:g}"
        if (self.inside, self.outside) != (DIFFUSIVITY, DIFFUSIVITY):
            end += f"-D{self.inside:g}in{self.outside:g}"
        if self.T2 != NO_T2:
            end += f"-T2-{self.T2[0]:g}in{self.T2[1]:g}"
        if self.density != 1:
            end += f"-density{self.density:g}"
        if self.echo_time is not None:
            end += "-TE" + "-".join(f"{time:g}" for time in self.echo_time)
        if self.units != "um^3":
            end += f"-{self.units}"
        return f"{self.boundary}-{self.acquisition}{end}"

    def known(self, unknown: Sequence[str]) -> dict:
        """What a run file says of the tissue where these numbers are not known."""
        found: dict = {"boundary": self.boundary}
        if "wall_permeability" not in unknown:
            found["wall_permeability_um_per_ms"] = self.wall
        if not {"diffusivity", "diffusivity_outside"} & set(unknown):
            found["diffusivity_um2_per_ms"] = self.outside
        if self.T2 != NO_T2 and not {"T2", "T2_outside"} & set(unknown):
            found["T2_ms"] = self.T2[1]
        return found


@dataclass(frozen=True)
class Case:
    """One row of the table; SNR is at b = 0, inf without noise; ``seed`` of noise and method.

    ``unknown``: numbers that the method is not told.
    """

    data: Data
    snr: float
    seed: int
    method: str
    unknown: tuple[str, ...] = ()

    @property
    def noise(self) -> str:
        """The name of its signals."""
        return f"snr{self.snr:g}-seed{self.seed}"

    def describe(self) -> str:
        """A few words for the screen."""
        return (f"{self.data.target}, {self.data.setting}, SNR {self.snr:g}, seed {self.seed}, "
                f"{self.name}")

    @property
    def name(self) -> str:
        """Of the method, and of what it is not told."""
        return "-without-".join([self.method, *self.unknown])


class Bench:
    """The folder of a benchmark. One at a time may work in it."""

    def __init__(self, root: Path):
        self.root = root

    def target_folder(self, name: str) -> Path:
        return self.root / "targets" / name

    def signals_folder(self, data: Data) -> Path:
        return self.root / "signals" / data.target / data.setting

    def run_folder(self, case: Case) -> Path:
        data = case.data
        return self.root / "runs" / data.target / data.setting / case.noise / case.name

    def write_target(self, target: Target, with_fine: bool) -> None:
        """Write the meshes of a target, unless they are there; InputError if others are."""
        place = self.target_folder(target.name)
        place.mkdir(parents=True, exist_ok=True)
        if (place / "truth.npz").is_file():
            known = readers.read(place / "truth.npz")
            if not all(np.array_equal(getattr(known, key), getattr(target.data, key))
                       for key in ("points", "cells", "interface_facets")):
                raise InputError(f"target {target.name}: {place} holds another mesh of this name, "
                                 "expected the same (or another -o DIR)")
        else:
            _write_mesh(place / "grid.npz", MeshData(target.data.points, target.data.cells))
            _write_mesh(place / "truth.npz", target.data)
        if with_fine and LEAKY in target.data.interface_tags:
            raise InputError(f"target {target.name}: a leaky patch has facets of the grid, "
                             "expected target mesh grid")
        if with_fine and not (place / "fine.npz").is_file():
            _write_mesh(place / "fine.npz", fine.mesh(target))

    def simulate(self, data: Data, stop: threading.Event) -> None:
        """Make the signals without noise, unless they are there, or raise a SolverError."""
        place = self.signals_folder(data)
        mesh = self.target_folder(data.target) / (
            "fine.npz" if data.target_mesh == "fine" else "truth.npz")
        content = {
            "mesh": {"file": os.path.relpath(mesh, place)},
            "tissue": {"boundary": data.boundary,
                       "diffusivity_um2_per_ms": self._by_tag(data, data.inside, data.outside),
                       **({"T2_ms": self._by_tag(data, *data.T2)} if data.T2 != NO_T2 else {}),
                       **({"density": self._by_tag(data, data.density, 1.0)}
                          if data.density != 1 else {}),
                       "permeability": _permeability(data, self._truth(data).interface_tags)},
            "acquisition": acquisition_of(data),
            "tolerance": TOLERANCES[data.target_mesh]}
        if data.boundary == "periodic":
            # as reconstructions have it
            content |= {"degree": 1, "engine": "direction_bases"}
        text = yaml.safe_dump(content, sort_keys=False)
        config, done = place / "simulate.yaml", place / "simulated"
        same = config.is_file() and config.read_text() == text
        if same and (done / run_folder.SUMMARY).is_file():
            return
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        config.write_text(text)
        outcome = spinverse(["simulate", config.name, "-o", done.name], place, stop=stop)
        if outcome.code:
            why = outcome.ended or outcome.message or f"exit code {outcome.code}"
            raise SolverError(f"signals of {data.target} ({data.setting}): {why}; "
                              f"{place / 'log.txt'} has more")

    def _by_tag(self, data: Data, inside: float, outside: float) -> float | dict:
        if inside == outside:
            return outside
        tags = np.unique(self._truth(data).cell_tags).tolist()
        return {tag: outside if tag == min(tags) else inside for tag in tags}

    def _truth(self, data: Data) -> MeshData:
        """The mesh that signals are of."""
        name = "fine.npz" if data.target_mesh == "fine" else "truth.npz"
        return readers.read(self.target_folder(data.target) / name)

    def write_signals(self, case: Case) -> Path:
        """The signals of a case with their noise, written unless they are there."""
        place = self.signals_folder(case.data)
        path = place / f"{case.noise}.npz"
        if not path.is_file():
            clean = read_signals(place / "simulated" / "signals.npz")
            name = f"{case.data.target}/{case.data.setting}"
            noisy = add_noise(clean, case.snr, case.seed, name)
            if case.data.units != "um^3":
                noisy = replace(noisy, values=FACTOR * noisy.values, unit="")
            run_folder.replace(path, lambda temporary: write_signals(temporary, noisy))
        return path

    def reconstruct(self, case: Case, method: Method, limit: float, force: bool,
                    stop: threading.Event) -> str:
        """Run a case, or go on with it, for ``limit`` s in all; its status, or "done before"."""
        place = self.run_folder(case)
        signals = self.write_signals(case)
        text = yaml.safe_dump(method.run_file(
            os.path.relpath(self.target_folder(case.data.target) / "grid.npz", place),
            os.path.relpath(signals, place), case.data.known(case.unknown),
            case.data.normalisation, case.seed, case.unknown), sort_keys=False)
        key = hashlib.sha256(text.encode() + signals.read_bytes()).hexdigest()
        known = self.state(place)
        if force or known.get("key") != key or known.get("status") == FAILED:
            shutil.rmtree(place, ignore_errors=True)
            known = {}
        if known.get("status") == DONE and (place / "found" / run_folder.SUMMARY).is_file():
            return "done before"
        spent = known.get("seconds", 0.0)
        if known.get("status") == RUNNING:  # the benchmark itself was ended
            changes = [path.stat().st_mtime for path in (place / "found").rglob("*")]
            spent += max([0.0, *(change - known["started"] for change in changes)])
        if known.get("status") == LIMIT and spent >= limit:
            return LIMIT
        place.mkdir(parents=True, exist_ok=True)
        (place / "run.yaml").write_text(text)
        state = {"case": asdict(case), "key": key, "status": RUNNING, "message": "",
                 "seconds": spent, "cpu_seconds": known.get("cpu_seconds", 0.0),
                 "peak_mb": known.get("peak_mb", 0.0), "parts": known.get("parts", 0) + 1,
                 "started": time.time()}
        self._save(place, state)
        outcome = self._run(place, limit - spent, stop)
        state |= {"seconds": spent + outcome.seconds,
                  "cpu_seconds": state["cpu_seconds"] + outcome.cpu_seconds,
                  "peak_mb": max(state["peak_mb"], outcome.peak_mb)}
        # a method that does not explain the data has its row in the table
        if outcome.code in (0, NOT_EXPLAINED) and (place / "found" / run_folder.SUMMARY).is_file():
            state["status"] = DONE
            try:
                self.measure(case)
            except Exception as error:  # noqa: BLE001 - a run that cannot be judged has failed
                state |= {"status": FAILED, "message": f"metrics: {error}"}
        elif outcome.ended:
            state["status"] = outcome.ended
        else:
            state |= {"status": FAILED, "message": outcome.message or f"exit code {outcome.code}"}
        self._save(place, state)
        return state["status"]

    def give_up(self, case: Case, why: str) -> str:
        """Note that a case could not be run; returns its status."""
        place = self.run_folder(case)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self._save(place, {"case": asdict(case), "key": "", "status": FAILED, "message": why,
                           "seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0})
        return FAILED

    def _run(self, place: Path, limit: float, stop: threading.Event) -> Outcome:
        found = place / "found"
        words = ["reconstruct", "run.yaml", "-o", "found"]
        if (found / run_folder.CHECKPOINT).is_file():
            outcome = spinverse([*words, "--resume"], place, limit, stop)
            if outcome.code != 2:  # 2: the checkpoint is of no use
                return outcome
        shutil.rmtree(found, ignore_errors=True)
        return spinverse(words, place, limit, stop)

    def measure(self, case: Case) -> dict:
        """The metrics of a finished run, and `true_misfit`; also written to ``metrics.json``."""
        place, home = self.run_folder(case), self.target_folder(case.data.target)
        truth = readers.read(home / "truth.npz")
        with np.load(place / "found" / "permeability.npz") as file:
            facets, kappa, membrane = (file[name] for name in
                                       ("facets", "permeability", "membrane"))
        surface = None
        if case.data.target_mesh == "fine":
            true = readers.read(home / "fine.npz")
            surface = true.points[true.interface_facets]
        found = compare(truth, facets, membrane, kappa, case.data.boundary, surface)
        if LEAKY in truth.interface_tags:
            found |= patch(truth, facets, kappa, case.data)
        found["true_misfit"] = self.true_misfit(case)
        summary = json.loads((place / "found" / run_folder.SUMMARY).read_text())
        if summary.get("cells") and case.data.boundary != "periodic":  # parts end at the faces
            found |= covered(truth, summary["cells"]["cells"], case.data.wall,
                             case.data.boundary == "absorbing")
        run_folder.write_json(place / "metrics.json", found)
        return found

    def true_misfit(self, case: Case) -> float:
        """The data misfit that the true cells on the grid have: what noise and mesh leave."""
        measured = read_signals(self.write_signals(case))
        on_grid = read_signals(
            self.signals_folder(case.data.on_grid) / "simulated" / "signals.npz")
        by = on_grid if case.data.normalisation == "own" else measured
        factor = FACTOR if case.data.units != "um^3" else 1.0
        predicted = factor * on_grid.magnitude / by.reference
        return float(np.mean((measured.normalised - predicted) ** 2))

    def state(self, place: Path) -> dict:
        """What ``run.json`` says, empty where there is none."""
        try:
            return json.loads((place / "run.json").read_text())
        except (OSError, ValueError):
            return {}

    def _save(self, place: Path, state: dict) -> None:
        run_folder.write_json(place / "run.json", state)


def case_of(state: dict) -> Case:
    """The case of a ``run.json``."""
    saved = dict(state["case"])
    data: dict[str, Any] = {key: tuple(map(float, value)) if isinstance(value, list) else value
                            for key, value in saved["data"].items()}
    return Case(Data(**data), float(saved["snr"]), int(saved["seed"]), saved["method"],
                tuple(saved.get("unknown", ())))


def acquisition_of(data: Data) -> list[dict]:
    """Section ``acquisition`` of a simulation."""
    kinds = ACQUISITIONS[data.acquisition]
    if data.echo_time is None:
        return [{kind: keys} for kind, keys in kinds.items()]
    each = sequences(data.acquisition)
    echoes = data.echo_time if len(data.echo_time) > 1 else data.echo_time * len(each)
    return [{kind: {**kinds[kind], "delta_ms": delta, "Delta_ms": Delta, "echo_time_ms": echo}}
            for (kind, delta, Delta), echo in zip(each, echoes, strict=True)]


def sequences(acquisition: str) -> list[tuple[str, float, float]]:
    """Kind, delta and Delta (ms) of each sequence of one of `ACQUISITIONS`."""
    return [(kind, float(delta), float(Delta)) for kind, keys in ACQUISITIONS[acquisition].items()
            for delta, Delta in zip(*(np.atleast_1d(keys[name]) for name in (
                "delta_ms", "Delta_ms")), strict=True)]


def _write_mesh(path: Path, data: MeshData) -> None:
    run_folder.replace(path, lambda temporary: write_npz(temporary, data))


def patch(truth: MeshData, facets: np.ndarray, kappa: np.ndarray, data: Data) -> dict:
    """How well the leaky part of a wall was found.

    Args:
        truth: whose interface facets of tag `LEAKY` leak.
        facets: ``(n, 3)`` vertex triples, every facet once.
        kappa: ``(n,)`` um/ms that were found.
        data: with the permeability of the rest.

    Returns:
        ``patch_f1`` of the true wall's facets above the geometric mean of both permeabilities;
        ``patch_leaky`` and ``patch_rest``, the geometric mean over the area of what was found on
        either, um/ms.
    """
    known = np.sort(facets, axis=1)
    order = np.lexsort(known.T[::-1])
    mine = order[find_facets(known[order], truth.interface_facets)]
    positive = kappa[mine] > 0  # outer facets of a box that reflects are closed
    mine, tags = mine[positive], truth.interface_tags[positive]
    x, values = truth.points[facets[mine]], kappa[mine]
    area = np.linalg.norm(np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]), axis=1)
    leaks, found = tags == LEAKY, values > np.sqrt(data.wall * PATCH)
    means = [float(np.exp(np.average(np.log(values[part]), weights=area[part])))
             for part in (leaks, ~leaks)]
    return {"patch_f1": 2 * int((leaks & found).sum()) / int(leaks.sum() + found.sum()),
            "patch_leaky": means[0], "patch_rest": means[1]}


def _permeability(data: Data, tags: np.ndarray) -> dict:
    """Section ``permeability`` of a simulation; ``tags`` of the interface facets."""
    # between the cells of a fine mesh there is nothing; those of the grid have 0.1 m/s
    elsewhere = ELSEWHERE if data.target_mesh == "grid" else float("inf")
    walls: dict | float = {1: data.wall, LEAKY: PATCH} if LEAKY in tags else data.wall
    found = {"membrane_um_per_ms": walls, "elsewhere_um_per_ms": elsewhere}
    return found | ({"outer_um_per_ms": ELSEWHERE} if data.boundary == "absorbing" else {})


def add_noise(signals: Signals, snr: float, seed: int, name: str) -> Signals:
    """Magnitudes with Rician noise: |S + e1 + i e2|, normal e1, e2 of deviation |S(b=0)| / snr.

    S(b=0) is that of the row's own sequence; inf is for no noise; the noise depends on the name.
    """
    if not snr > 0:
        raise InputError(f"snr: {snr:g}, expected a positive number or inf")
    if np.isinf(snr):
        return replace(signals, values=signals.magnitude)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    e1, e2 = rng.normal(size=(2, len(signals))) * signals.reference / snr
    return replace(signals, values=np.abs(signals.values + e1 + 1j * e2))
