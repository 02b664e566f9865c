"""The main job: every membrane facet of a sphere, by a rule that does not know the truth."""

from pathlib import Path

import numpy as np
import pytest

import spinverse
from spinverse.interface.extraction import compartments
from spinverse.interface.metrics import metrics

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "benchmark" / "018_sphere_10r_in_grid_20x20.npz"


def reconstruct(path, repair):
    mesh = spinverse.mesh.read(path, repair=repair)
    truth = spinverse.Permeability.on(mesh, membrane=0.01, elsewhere=100.0, outer=100.0)
    acquisition = spinverse.Acquisition.pgse(
        b=np.arange(0, 5001, 1000), directions=30, delta=[5, 10, 10], Delta=[6, 20, 60])
    signals = spinverse.simulate(spinverse.Tissue(mesh, 2.0, permeability=truth), acquisition)
    result = spinverse.reconstruct(mesh, signals, boundary="absorbing")
    found = compartments(result.tissue, boundary_absorbing=True).facets
    return result, metrics(mesh, found, result.permeability, result.unknown, "absorbing")


@pytest.mark.filterwarnings("ignore::spinverse.mesh.RepairWarning")
@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_file(),
                    reason="the published benchmark's meshes are not in ../shared")
def test_published_sphere():
    result, figures = reconstruct(PUBLISHED, repair=True)
    assert result.data_misfit < 1e-5
    assert figures["true"] == 48 and figures["false_negatives"] == 0
    assert figures["false_positives"] <= 2


@pytest.mark.slow
def test_demo_sphere():
    result, figures = reconstruct(ROOT / "meshes" / "sphere_in_grid_bcc.npz", repair=False)
    assert result.data_misfit < 1e-5
    assert figures["true"] == 96 and figures["false_negatives"] == 0
    assert figures["false_positives"] <= 2
