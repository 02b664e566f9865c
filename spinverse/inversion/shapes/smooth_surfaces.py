"""Cells with smooth surfaces, which need no facets: level sets of polynomials fitted to the data.

Where data are not of the mesh, its cells are wrong in two ways: stairs are no surface, and fields
that are linear in coarse cells are wrong by as much as a cell at the wall changes. Here each mesh
cell is eight for the fields, unless the mesh is fine anyway, and surfaces cut through them
(`engines.shapes.cut`). What the mesh leaves wrong is known from the same surfaces on the mesh
before it was refined: linear elements gain a factor of four (Richardson, Phil. Trans. A 210 (1911)
307). Signals are corrected by that, and the correction may be wrong by one and a half of itself:
the error of the model (as approximation errors are; Kaipio and Somersalo, J. Comput. Appl. Math.
198 (2007) 493).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg
from mpi4py import MPI

from ...engines.shapes.cut import CutModel
from ...engines.shapes.cut_cells import Shape
from ...mesh.data import MeshData
from ...mesh.distributed import Mesh
from ...mesh.refinement import refined
from ...mesh.surfaces import Surface
from ..problem import InverseProblem
from .hypothesis import Hypothesis
from .levels import Levels, damping
from .look import Look
from .models import Models

COARSE = 10_000  # mesh cells: on fewer, fields are linear in an eighth of each
LOWER = (2, 10), (3, 8)  # degrees, steps at most, that ellipsoids begin with
DEGREES = (4, 10), (5, 6), (6, 8)  # of the polynomials, steps at most
# ms, of steps in time: of signals, and of slopes, which are of second order in it with the rates
# of fast modes (1 to 15 % off at 0.25)
LONGEST, OF_SLOPES = 0.5, 0.25
DAMPING, LEAST = 1e-2, 1e-8  # of the mean curvature, when a degree begins and at least
TRIES, HARDER, EASIER = 7, 4.0, 0.1  # dampings of a step; their factors
SHORT, LONG = 2e-3, 1.0  # rms of a wall's movement in sizes of a mesh cell: nothing, too far
LONGEST_THETA = 1.5  # of a coordinate of theta in a step
GAIN = 0.02  # share of the misfit: less than this in two steps ends a degree
HELD = 0.1  # of the mean curvature, against shifts of a whole cell
SHIFT, LEAST_SHIFT = 0.6, 0.08  # of a cell that is put elsewhere, in sizes of a mesh cell
FLATTEST = 1e-3  # slope of a level function, which is about 1: of its surface there
THETA_STEP = 0.1  # of a coordinate, for slopes by central differences
MOST = 0.5  # of the box, that a cell may fill
SLOPES = 10  # shapes that slopes by all coefficients cost as much as
# of the correction for the mesh: how far it may be wrong. The meshes of data have errors, too, and
# cut surfaces, and steps in time; data of the mesh itself leave 1.8 times as much (rms, axon-0)
UNSURE = 1.5
# of the error of the mesh, as mean square: what doubling the area counts for; of surfaces that
# explain the data equally well the smallest is wanted: thin sheets and spikes hardly change them
# (with 1, a sphere in a reflecting box shrinks by 10 %)
AREA = 0.01
# um: levels are to be as negative where no cell is near, which counts by its mean square over the
# box, in shares of the misfit that a degree begins with; pieces there, which are no part of a cell,
# would join it
MARGIN = 0.3
# of the error of the mesh: surfaces that leave less need no higher degree, and no other start (a
# ball on 216 mesh cells left 0.13 with 5 % less volume, and 0.01 from an ellipsoid)
ENOUGH, GOOD = 0.05, 0.1
# of normalised magnitudes, mean square that the mesh may be wrong by: beyond, surfaces explain
# signals of other walls and diffusivities, too (a ball on 96 mesh cells, 6e-4: a wall five times
# and a diffusivity 0.6 times as large); fits that held had 5e-6 to 5e-5
TELLS = 1e-4
KEPT = 0.95  # of its volume that must stay in the box then


@dataclass(frozen=True, eq=False)
class SmoothCells:
    """Cells with smooth surfaces, and how far they explain the data.

    Attributes:
        degree: of the polynomials.
        coefficients: ``(cells, n)``, see `Levels`; positive inside.
        theta: coordinates of the unknown numbers.
        labels: ``(Nt,)`` int8, mesh cells of the user's whose greater part is inside.
        signals: ``(N,)`` complex, um^3 times density.
        misfit: mean square residual of all measurements.
        correction: ``(N,)`` of normalised magnitudes for the mesh; it may be wrong by `UNSURE`
            times as much.
        volumes, areas: of each cell, um^3 and um^2.
        surfaces: of each cell.
        refined: whether fields were linear in an eighth of each mesh cell.
    """

    degree: int
    coefficients: np.ndarray
    theta: np.ndarray
    labels: np.ndarray
    signals: np.ndarray
    misfit: float
    correction: np.ndarray
    volumes: np.ndarray
    areas: np.ndarray
    surfaces: list[Surface]
    refined: bool

    @property
    def corrected(self) -> float:
        """Mean square of the correction."""
        return float(np.mean(self.correction**2))

    @property
    def error(self) -> float:
        """What the mesh may be wrong by after it, mean square of normalised magnitudes."""
        return UNSURE**2 * self.corrected

    def describe(self) -> str:
        """One line for people."""
        where = "each mesh cell taken for eight" if self.refined else "mesh cells cut"
        return (f"smooth surfaces, {where}: corrected for the mesh by "
                f"{np.sqrt(self.corrected):.2g} rms of |S(b = 0)|, which may be wrong by "
                f"{np.sqrt(self.error):.2g}, they leave {np.sqrt(self.misfit):.2g}")

    def summary(self) -> dict:
        """For ``summary.json``."""
        return {"degree": self.degree, "misfit": self.misfit, "mesh_error": self.error,
                "mesh_correction": self.corrected,
                "refined": self.refined,
                "volume_um3": self.volumes.tolist(), "surface_um2": self.areas.tolist()}


def suits(problem: InverseProblem) -> bool:
    """Whether smooth surfaces can be fitted: in boxes that end, without terms of the user's."""
    numbers = (problem.diffusivity, problem.T2, problem.T1, problem.density)
    return (not problem.periodic and problem.extra_terms is None
            and all(np.isscalar(value) for value in numbers))


class SmoothFit:
    """Level sets that follow a hypothesis. Methods are collective.

    Args:
        models: of the search.
        look: measurements that the steps look at.
        cells: so many.
    """

    def __init__(self, models: Models, look: Look, cells: int = 1):
        self.users, self.look, self.comm, self.cells = models, look, models.comm, cells
        whole = models.whole
        self.refined = len(whole.cells) <= COARSE
        self._fine = self._models(self.refined)
        self._model: tuple = (None, None)
        self._at_points: dict[int, np.ndarray] = {}
        self._active = np.flatnonzero(models.active(np.array([cells])))
        self._correction: np.ndarray | float = 0.0  # of the signals that the steps look at
        self._area = 0.0  # of the latest surfaces, um^2
        self._latest: list[Shape] = []
        self.shapes = 0

    def _models(self, finer: bool) -> Models:
        """Of the user's mesh, or of one where each mesh cell is eight."""
        problem, whole = self.users.problem, self.users.whole
        if finer:
            data = MeshData(*refined(whole.points, whole.cells))
            problem = replace(problem, mesh=Mesh.from_data(data, problem.comm))
        made = Models(problem, self.users.cells)
        made.resistance = 0.0  # of facets, through which nothing goes here
        return made

    def model(self, theta: np.ndarray) -> CutModel:
        """At coordinates of theta."""
        if self._model[0] != theta.tobytes():
            self._model = theta.tobytes(), self._fine.cut(theta, 1)
        return self._model[1]

    def _shapes(self, model: CutModel, levels: Levels, a: np.ndarray) -> list[Shape] | None:
        n = len(levels.powers)
        if n not in self._at_points:
            self._at_points[n] = levels.basis(model.grid.points)
        found = model.shapes(a @ self._at_points[n].T)
        most = MOST * model.grid.whole.volumes.sum()
        return found if all(len(shape.cut) and shape.volume < most for shape in found) else None

    def residual(self, levels: Levels, a: np.ndarray, theta: np.ndarray) -> np.ndarray | None:
        """Of the measurements that count, ``(N,)``; None where there are no such cells."""
        model, look = self.model(theta), self.look
        shapes = self._shapes(model, levels, a)
        self.shapes += 1
        if shapes is None:
            return None
        self._area, self._latest = sum(shape.area for shape in shapes), shapes
        found = model.signals(shapes, look.sweeps(LONGEST)) + self._correction
        return self.comm.bcast(look.predicted(found) - look.measured)

    # ---- the fit --------------------------------------------------------------------------------

    def fit(self, start: Hypothesis, report: Callable[[str, float], None],
            limit: float = 0.0) -> SmoothCells | None:
        """From ellipsoids with the moments of a start's cells, then from what follows these.

        Collective. What follows ragged cells is rougher: of a ball of one mesh edge, as well
        explained, S/V was 9 to 15 % off, and 2 to 3 % from the ellipsoid in three searches of four.

        None if that is nothing, or the mesh is so coarse that surfaces explain anything.

        Args:
            start: of the search; `cells` of them count.
            report: called with a phase and its misfit.
            limit: misfit that noise explains.
        """
        best = None
        for degrees, begun in ((LOWER + DEGREES, Levels.ellipsoid), (DEGREES, Levels.around)):
            levels = Levels(self.users, degrees[0][0])
            a = np.array([begun(levels, start.labels == k) for k in range(1, self.cells + 1)])
            found = self._follow(levels, a, start.theta, degrees, report, limit)
            if found is not None and (best is None or found.misfit < best.misfit):
                best = found
            if best is not None and best.misfit <= limit + GOOD * best.error:
                break
        if best is not None and best.error > max(TELLS, limit):
            report("mesh too coarse", best.misfit)
            return None
        return best

    def _follow(self, levels: Levels, a: np.ndarray, theta: np.ndarray, degrees: tuple,
                report: Callable[[str, float], None], limit: float) -> SmoothCells | None:
        """Ever higher degrees, until data are explained well. None where there is no cell."""
        self._correction, error = 0.0, 0.0
        for degree, steps in degrees:
            first, finer = degree == degrees[0][0], Levels(self.users, degree)
            a = np.array([finer.scaled(finer.raised(one, levels.powers)) for one in a])
            levels = finer
            if not first:
                self._correction, error = self._doubt(levels, a, theta)
            a, theta, best = self._degree(levels, a, theta, steps, AREA * error)
            if not np.isfinite(best):
                return None
            report(f"smooth surface {degree}", best)
            if first:
                if self.cells == 1:
                    a, best = self._placed(levels, a, theta, best)
                    report("placed", best)
                self._correction, error = self._doubt(levels, a, theta)
                a, theta, best = self._degree(levels, a, theta, steps, AREA * error)
                report("corrected", best)
            if best <= limit + ENOUGH * error:
                break
        return self.result(a, theta)

    def _doubt(self, levels: Levels, a: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, float]:
        """The correction for the mesh, and the mean square of how far it may be wrong."""
        added, change = self.correction(levels, a, theta, self.look)
        return added, UNSURE**2 * float(np.mean(change**2))

    def _degree(self, levels: Levels, a: np.ndarray, theta: np.ndarray, steps: int,
                weight: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Levenberg-Marquardt on the coefficients and the unknown numbers.

        Of the mean square residual, and ``weight`` times the area over that at the beginning.
        """
        r = self.residual(levels, a, theta)
        if r is None:
            return a, theta, np.inf
        weight /= self._area
        area, best = self._area, float(np.mean(r**2))
        apart, (beyond, bend, push) = best, self._beyond(levels, a)
        values, mu, size = [best + weight * area + apart * beyond], DAMPING, self.users.size
        for _ in range(steps):
            J, metric, by_area = self._slopes(levels, a, theta)
            slopes = self._theta_slopes(levels, a, theta)
            n = J.shape[1]
            both = np.hstack([J, slopes.T])
            H, g = both.T @ both / len(r), both.T @ r / len(r)
            # the square of the root of the area
            H[:n, :n] += weight / (4 * area) * np.outer(by_area, by_area)
            g[:n] += weight / 2 * by_area + apart * push
            H[:n, :n] += apart * bend
            damped = damping(H, metric)
            # a step would be a long way to another place, of which signals tell next to nothing
            shifts, mean = metric @ self._shifts(levels, a), np.trace(H[:n, :n])
            H[:n, :n] += HELD * mean / np.trace(metric) * shifts @ shifts.T
            # what multiplies a level function is no change
            scales = scipy.linalg.block_diag(*(one / np.linalg.norm(one) for one in a))
            H[:n, :n] += mean * scales.T @ scales
            better = None
            for _ in range(TRIES):
                step = -np.linalg.solve(H + mu * damped, g)
                far = float(np.sqrt(step[:n] @ metric @ step[:n]))
                longest = np.abs(step[n:]).max(initial=0.0)
                if far < SHORT * size and longest < SHORT:
                    break
                if far < LONG * size and longest < LONGEST_THETA:
                    there = theta.copy()
                    there[self._active] += step[n:]
                    there = np.clip(there, *self._fine.bounds) if len(theta) else theta
                    moved_a = a + step[:n].reshape(a.shape)
                    reached = self.residual(levels, moved_a, there)
                    if reached is not None:
                        away = self._beyond(levels, moved_a)
                        value = np.mean(reached**2) + weight * self._area + apart * away[0]
                        if value < values[-1]:
                            better = moved_a, there, reached, self._area, away
                            break
                mu *= HARDER
            if better is None:
                break
            a, theta, r, area, _ = better
            a = np.array([levels.scaled(one) for one in a])
            beyond, bend, push = self._beyond(levels, a)
            mu = max(mu * EASIER, LEAST)
            best = float(np.mean(r**2))
            values.append(best + weight * area + apart * beyond)
            if len(values) > 2 and values[-1] > (1 - GAIN) * values[-3]:
                break
        return a, theta, best

    def _slopes(self, levels: Levels, a: np.ndarray, theta: np.ndarray) -> tuple:
        """Derivatives of the residual by coefficients, ``(N, cells n)``.

        And the mean square of how far walls move, ``(cells n, cells n)``, and derivatives of the
        area.
        """
        model, look = self.model(theta), self.look
        shapes = self._shapes(model, levels, a)
        S, J, by_area = model.jacobian(shapes, self._at_points[len(levels.powers)],
                                       look.sweeps(OF_SLOPES),
                                       lambda k: k % self.comm.size == self.comm.rank)
        self.shapes += SLOPES
        if self.comm.size > 1:  # each row comes from one rank: the sum adds zeros
            self.comm.Allreduce(MPI.IN_PLACE, S)
            self.comm.Allreduce(MPI.IN_PLACE, J)
        metric, total = [], sum(shape.area for shape in shapes)
        for shape, one in zip(shapes, a, strict=True):
            x = shape.triangles.mean(axis=1)
            area = np.linalg.norm(shape.normals, axis=1)
            steep = np.sqrt((np.einsum("dfk,k->fd", levels.gradients(x), one) ** 2).sum(axis=1))
            moved = levels.basis(x) / np.maximum(steep, FLATTEST)[:, None]
            metric.append(moved.T @ (area[:, None] * moved) / total)
        return (look.change(S + self._correction, J), scipy.linalg.block_diag(*metric), by_area)

    def _beyond(self, levels: Levels, a: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Mean square of levels above minus `MARGIN` far from the latest cells, in margins.

        And half its second derivatives, ``(cells n, cells n)``, and half its first.
        """
        grid, B = self._model[1].grid, self._at_points[len(levels.powers)]
        value, bend, push = 0.0, [], []
        for one, shape in zip(a, self._latest, strict=True):
            far = np.ones(len(B), bool)
            far[grid.parts[np.concatenate([shape.full, shape.cut])]] = False
            above = B @ one + MARGIN
            rows = np.flatnonzero(far & (above > 0))
            D, h = B[rows] / MARGIN, above[rows] / MARGIN
            value += float(h @ h) / len(B)
            bend.append(D.T @ D / len(B))
            push.append(D.T @ h / len(B))
        return value, scipy.linalg.block_diag(*bend), np.concatenate(push)

    def _shifts(self, levels: Levels, a: np.ndarray) -> np.ndarray:
        """Changes of the coefficients that shift one cell by 1 um, ``(cells n, 3 cells)``."""
        inverse = np.linalg.pinv(levels.values)
        return scipy.linalg.block_diag(*(
            np.stack([inverse @ (slope @ one) for slope in levels.slopes], axis=1) for one in a))

    def _theta_slopes(self, levels: Levels, a: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Derivatives of the residual by the `Models.active` coordinates of theta, ``(P, N)``."""
        found = []
        for unit in np.eye(len(theta))[self._active]:
            up, down = (self.residual(levels, a, theta + sign * THETA_STEP * unit)
                        for sign in (1, -1))
            found.append((up - down) / (2 * THETA_STEP))
        return np.reshape(found, (len(found), len(self.look.measured)))

    def _placed(self, levels: Levels, a: np.ndarray, theta: np.ndarray,
                best: float) -> tuple[np.ndarray, float]:
        """One cell where it explains most, or reflected at a point, which signals hardly tell."""
        shapes = self._shapes(self.model(theta), levels, a)
        x, area = shapes[0].triangles.mean(axis=1), np.linalg.norm(shapes[0].normals, axis=1)
        middle, volume = np.average(x, axis=0, weights=area), shapes[0].volume
        here, turned, found = np.zeros(3), 1.0, a
        step = SHIFT * self.users.size

        def moved(shift, sign):
            y = sign * (levels.centroids - middle - shift) + middle
            return np.linalg.lstsq(levels.values, levels.basis(y) @ a[0], rcond=None)[0][None]

        while step > LEAST_SHIFT * self.users.size:
            better = None
            for sign in (turned, -turned):
                for shift in (here, *(here + step * e for e in np.vstack([np.eye(3), -np.eye(3)]))):
                    if sign == turned and shift is here:
                        continue
                    there = moved(shift, sign)
                    at = self._shapes(self.model(theta), levels, there)
                    if at is None or at[0].volume < KEPT * volume:
                        continue
                    r = self.residual(levels, there, theta)
                    if r is not None and np.mean(r**2) < best:
                        best, better = float(np.mean(r**2)), (there, shift, sign)
            if better is None:
                step /= 2
            else:
                found, here, turned = better
        return np.array([levels.scaled(one) for one in found]), best

    # ---- what it came to ------------------------------------------------------------------------

    def correction(self, levels: Levels, a: np.ndarray, theta: np.ndarray,
                   look: Look) -> tuple[np.ndarray, np.ndarray]:
        """What finer meshes would add to signals, and to normalised magnitudes, ``(N,)``.

        Collective.
        """
        found = []
        for models, parts in ((self._fine, 1 if self.refined else 2),
                              (self._other, 2 if self.refined else 1)):
            model = models.cut(theta, parts)
            values = levels.basis(model.grid.points) @ a.T
            found.append(model.signals(model.shapes(values.T), look.sweeps(LONGEST)))
        here, other = found
        # of second order: what halving changes is three quarters of the error before
        added = self.comm.bcast((here - other) / 3 if self.refined else (other - here) * 4 / 3)
        self.shapes += 2
        return added, self.comm.bcast(look.predicted(here + added) - look.predicted(here))

    @cached_property
    def _other(self) -> Models:
        return self._models(not self.refined)

    def result(self, a: np.ndarray, theta: np.ndarray) -> SmoothCells:
        """What coefficients ``(cells, n)`` and coordinates of theta come to. Collective."""
        degree = next(d for d in range(20) if (d + 1) * (d + 2) * (d + 3) // 6 >= a.shape[1])
        levels = Levels(self.users, degree)
        model, everything, whole = self.model(theta), self.users.all, self.users.whole
        shapes = self._shapes(model, levels, a)
        added, change = self.correction(levels, a, theta, everything)
        signals = self.comm.bcast(model.signals(shapes, everything.sweeps(LONGEST))) + added
        r = everything.predicted(signals) - everything.measured
        labels = np.zeros(len(whole.cells), np.int8)
        for label, shape in enumerate(shapes, 1):
            inside = np.zeros(len(model.grid.whole.cells))
            inside[shape.full], inside[shape.cut] = 1.0, shape.share
            inside = (inside * model.grid.whole.volumes).reshape(len(labels), -1).sum(axis=1)
            labels[inside > 0.5 * whole.volumes] = label
        absorbing = self.users.problem.absorbing
        surfaces = [shape.surface(model.grid, f"cell {label}")
                    for label, shape in enumerate(shapes, 1)]
        areas = [shape.area + absorbing * shape.rim_area(model.grid) for shape in shapes]
        return SmoothCells(
            degree, a, theta, labels, signals, float(np.mean(r**2)),
            change, np.array([shape.volume for shape in shapes]),
            np.array(areas), [Surface(surface.points + whole.centre, surface.triangles,
                                      surface.name) for surface in surfaces], self.refined)
