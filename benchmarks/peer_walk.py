"""One case by dmipy-sim, for `peers.py`: reads a line of JSON, prints one. Runs in its own Python.

Nothing of spinverse is imported. Seconds are of the second of two calls of the same shape, so that
compilation is not in them; they are those of all threads.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

UM, MS, UM_PER_MS = 1e-6, 1e-3, 1e-3  # m, s, m/s


def geometry_of(case: dict):
    import dmipy_sim.geometries as peer

    kind, radii = case["kind"], UM * np.array(case.get("radii", []))
    kappa = UM_PER_MS * case["permeability"] if case["permeability"] else None
    if kind == "slab":
        return peer.PermeableSlab1D(UM * case["length"], kappa) if kappa else peer.Box1D(
            UM * case["length"])
    if kind in ("sphere", "cylinder"):
        if len(radii) == 2:
            return peer.PermeableShell(*radii, kappa, kind=kind)
        return peer.Sphere(radii[0]) if kind == "sphere" else peer.Cylinder(
            radii[0], np.array([0.0, 0.0, 1.0]))
    packed = peer.PackedSpheres if kind == "packed_spheres" else peer.PackedCylinders
    return packed(radii=radii, centers=UM * np.array(case["centres"]), L=UM * case["length"],
                  permeability=kappa)


def starts(case: dict, number: int, seed: int) -> np.ndarray | None:
    """Uniform on both sides of the membranes; what the geometry itself does if None."""
    rng = np.random.default_rng(seed)
    if case["kind"].startswith("packed"):
        half = UM * case["length"] / 2
        return rng.uniform(-half, half, (number, 3)).astype(np.float32)
    if len(case.get("radii", [])) == 2:  # it would start inside of the inner membrane
        flat = case["kind"] == "cylinder"
        x = rng.normal(size=(number, 3)) * [1, 1, 0 if flat else 1]
        reach = UM * case["radii"][1] * rng.random((number, 1)) ** (1 / 2 if flat else 1 / 3)
        return (x / np.linalg.norm(x, axis=1, keepdims=True) * reach).astype(np.float32)
    return None


def main() -> None:
    case = json.loads(sys.stdin.read())
    from dmipy_sim import set_b, simulate
    from dmipy_sim.waveforms import pgse

    b = 1e6 * np.array(case["b"])
    waveform = set_b(pgse(delta=MS * case["delta"], DELTA=MS * case["Delta"], G_magnitude=1.0,
                          bvecs=np.tile([1.0, 0.0, 0.0], (len(b), 1)), n_t=case["steps"],
                          slew_rate=np.inf), b)
    geometry, number = geometry_of(case), case["walkers"]
    for seed in (case["seed"] + 1000, case["seed"]):
        r0 = starts(case, number, seed)
        began = time.process_time()
        signals = np.asarray(simulate(number, diffusivity=1e-9 * case["diffusivity"],
                                      waveform=waveform, geometry=geometry, seed=seed,
                                      **({} if r0 is None else {"r0": r0})))
        spent = time.process_time() - began
    print(json.dumps({"signals": np.real(signals).ravel().tolist(), "seconds": spent}))


if __name__ == "__main__":
    main()
