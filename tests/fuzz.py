"""Files that are not trusted: mutated valid ones and random bytes, in a process of its own.

``python tests/fuzz.py EXAMPLES [FORMAT ...]``: every example must be read, or refused by an error
of ours. What crashes, hangs, takes more memory than a bound or raises something else is printed,
and the file is kept.
"""

import faulthandler
import importlib.util
import io
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mpi4py import MPI

from spinverse import Permeability, config, mesh
from spinverse.acquisition import Acquisition, Signals
from spinverse.acquisition import io as tables
from spinverse.acquisition.camino import write_camino
from spinverse.errors import SpinverseError
from spinverse.interface import export
from spinverse.inversion import State
from spinverse.report import folder

MEMORY = 4 * 2**30  # bytes more than at the start
HANGS = 60  # s of one example: no file here takes a tenth of a second
NASTY = (b"nan", b"inf", b"-1", b"0", b"1e308", b"-1e308", b"1e-320", b"99999999999999999999",
         b"", b"1,2", b"0x10", b"1_0", b"\xc2\xb2", b"'", b"None", b"4294967296",
         b"-9223372036854775809")
NUMBER = rb"[-+]?\d[\d.eE+-]*"


# ---- valid files --------------------------------------------------------------------------------

def acquisition() -> Acquisition:
    return Acquisition.pgse([0, 1000], directions=3, delta=[10], Delta=[20])


def signals() -> Signals:
    table = acquisition()
    return Signals(table, np.linspace(1.0, 0.5, len(table)))


def box():
    return mesh.tagged_grid(mesh.Ball(1.5), 4.0, cells=2)


def written(name: str, write: Callable[[Path], object]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / name)
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def meshio_file(name: str, kind: str, **how) -> dict[str, bytes]:
    import meshio

    data = box()
    tags = {"gmsh:physical": [data.cell_tags], "gmsh:geometrical": [data.cell_tags]}
    ours = meshio.Mesh(data.points, [("tetra", data.cells)], cell_data=tags)
    return written(name, lambda path: meshio.write(path, ours, file_format=kind, **how))


def surface(name: str) -> dict[str, bytes]:
    import trimesh

    return written(name, lambda path: trimesh.creation.icosphere(1, 3.0).export(path))


def labels() -> np.ndarray:
    image = np.zeros((6, 6, 6), np.int16)
    image[2:4, 2:4, 2:4] = 1
    return image


def nifti(name: str) -> dict[str, bytes]:
    import nibabel

    image = nibabel.Nifti1Image(labels(), np.eye(4))
    image.header.set_xyzt_units("micron")
    return written(name, lambda path: nibabel.save(image, path))


def numpy_file(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


RUN = b"""
mesh: {builder: sphere_in_box, radius_um: 2, box_um: 6, size_um: 3}
tissue: {boundary: reflecting, diffusivity_um2_per_ms: 2}
acquisition:
  pgse: {b_s_per_mm2: [0, 1000], directions: 3, delta_ms: 10, Delta_ms: 20}
"""
SWC = b"1 1 0 0 0 3 -1\n2 3 5 0 0 1 1\n3 3 9 0 0 1 2\n"
NODE = b"5 3 0 0\n1 0 0 0\n2 1 0 0\n3 0 1 0\n4 0 0 1\n5 1 1 1\n"
ELE = b"2 4 1\n1 1 2 3 4 1\n2 2 3 4 5 2\n"
BIDS = b'{"EchoTime": 0.05, "DiffusionGradientDuration": 0.01, "BigDelta": 0.02}'
BVAL, BVEC = b"0 1000 1000\n", b"0 1 0\n0 0 1\n0 0 0\n"

_MESH = None


def small_mesh():
    """One mesh for all that needs a distributed one."""
    global _MESH
    if _MESH is None:
        _MESH = mesh.Mesh.from_data(box(), MPI.COMM_SELF)
    return _MESH


def checkpoint() -> dict[str, bytes]:
    ours = small_mesh()
    with tempfile.TemporaryDirectory() as place:
        state = State(np.ones(ours.num_owned_facets), np.zeros(ours.num_owned_cells, np.int32))
        (Path(place) / folder.CHECKPOINT).parent.mkdir(parents=True)
        folder.save_checkpoint(Path(place), ours, state, 0, 3, ["all"], {})
        return {"latest.npz": (Path(place) / folder.CHECKPOINT).read_bytes()}


def load_checkpoint(path: Path) -> None:
    place = path.parent / "run"
    target = place / folder.CHECKPOINT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
    found = folder.load_checkpoint(place, ["all"], {})
    small_mesh().scatter_facets(found.triples, found.permeability, "checkpoint")


def spin_echo(path: Path) -> None:
    import pypulseq as pp

    sequence, lobe = pp.Sequence(), pp.make_trapezoid("x", area=1e3, duration=4e-3)
    sequence.add_block(pp.make_block_pulse(np.pi / 2, duration=1e-3, use="excitation"))
    sequence.add_block(lobe)
    sequence.add_block(pp.make_block_pulse(np.pi, duration=1e-3, use="refocusing"))
    sequence.add_block(lobe)
    sequence.add_block(pp.make_adc(8, dwell=2e-5))
    sequence.write(str(path))


def permeability() -> dict[str, bytes]:
    ours = small_mesh()
    return written("permeability.npz", lambda path: export.write_permeability(
        path, ours, Permeability.on(ours, membrane=0.01).values))


#: What is made, and how it is read: the first file of each.
FORMATS: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[Path], object]]] = {
    "csv": (lambda: written("s.csv", lambda p: tables.write_signals(p, signals())),
            tables.read_signals),
    "signals npz": (lambda: written("s.npz", lambda p: tables.write_signals(p, signals())),
                    tables.read_signals),
    "scheme": (lambda: written("a.scheme", lambda p: write_camino(p, acquisition())),
               tables.read_acquisition),
    "fsl": (lambda: {"d.bval": BVAL, "d.bvec": BVEC},
            lambda p: tables.read_acquisition(p, delta=10.0, Delta=20.0)),
    "bids": (lambda: {"d.json": BIDS, "d.bval": BVAL, "d.bvec": BVEC},
             lambda p: tables.read_acquisition(p, delta=10.0, Delta=20.0)),
    "mesh npz": (lambda: written("m.npz", lambda p: mesh.write_npz(p, box())), mesh.readers.read),
    "msh": (lambda: written("m.msh", lambda p: mesh.write_msh(p, box())), mesh.readers.read),
    "msh text": (lambda: meshio_file("m.msh", "gmsh22", binary=False), mesh.readers.read),
    "tetgen": (lambda: {"t.node": NODE, "t.ele": ELE}, mesh.readers.read),
    "xdmf": (lambda: dict(sorted(meshio_file("m.xdmf", "xdmf").items(), reverse=True)),
             mesh.readers.read),
    "stl": (lambda: surface("s.stl"), mesh.read_surface),
    "ply": (lambda: surface("s.ply"), mesh.read_surface),
    "obj": (lambda: surface("s.obj"), mesh.read_surface),
    "off": (lambda: surface("s.off"), mesh.read_surface),
    "swc": (lambda: {"n.swc": SWC}, mesh.neuron_surface),
    "nii": (lambda: nifti("l.nii"), mesh.read_labels),
    "nii.gz": (lambda: nifti("l.nii.gz"), mesh.read_labels),
    "npy": (lambda: {"l.npy": numpy_file(labels())}, lambda p: mesh.read_labels(p, 1.0)),
    "run file": (lambda: {"run.yaml": RUN}, lambda p: config.read(p, config.SimulateConfig)),
    "checkpoint": (checkpoint, load_checkpoint),
    "permeability": (permeability, lambda p: export.read_permeability(p, small_mesh())),
}

if importlib.util.find_spec("pypulseq"):
    FORMATS["seq"] = lambda: written("a.seq", spin_echo), tables.read_acquisition


# ---- what becomes of them -----------------------------------------------------------------------

@st.composite
def mutated(draw, content: bytes) -> bytes:
    """A valid file with a few faults, or no file at all."""
    import re

    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["number", "byte", "cut", "again", "insert", "archive"]))
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 40))
        if kind == "number":
            found = list(re.finditer(NUMBER, content[:20000]))
            if found:
                there = found[draw(st.integers(0, len(found) - 1))]
                content = (content[: there.start()] + draw(st.sampled_from(NASTY))
                           + content[there.end():])
        elif kind == "byte":
            content = content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1:]
        elif kind == "cut":
            end = len(content) if draw(st.booleans()) else place + length
            content = content[:place] + content[end:]
        elif kind == "again":
            content = content[: place + length] + content[place:]
        elif kind == "insert":
            content = content[:place] + draw(st.binary(max_size=20)) + content[place:]
        elif content[:2] == b"PK":
            content = draw(other_arrays(content))
    return content


@st.composite
def other_arrays(draw, content: bytes) -> bytes:
    """An archive of arrays, one of which is another one, or missing."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception:  # an earlier fault
        return content
    if not arrays:
        return content
    name = draw(st.sampled_from(sorted(arrays)))
    array = arrays[name]
    kind = draw(st.sampled_from(
        ["none", "short", "text", "object", "nan", "large", "flat", "huge"]))
    if kind == "none":
        del arrays[name]
    elif kind == "text":
        arrays[name] = array.astype(str)
    elif kind == "object":
        arrays[name] = np.array([Evil()], dtype=object)
    elif kind == "flat":
        arrays[name] = array.reshape(-1)
    elif kind != "huge" and array.size and array.ndim:
        arrays[name] = array[:-1] if kind == "short" else array.copy()
        if kind in ("nan", "large") and array.dtype.kind in "iuf":
            arrays[name].flat[0] = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    if kind == "huge":  # a header that promises more than there is
        with zipfile.ZipFile(stream, "a") as file, warnings.catch_warnings(action="ignore"):
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 3)})
            file.writestr(f"{name}.npy", header.getvalue())
    return stream.getvalue()


class Evil:
    """Code in a pickle: reading it would show."""

    def __reduce__(self):
        return print, ("CODE OF THE FILE WAS RUN",)


# ---- running ------------------------------------------------------------------------------------

class Hangs(Exception):
    pass


def ring(number, frame):
    raise Hangs(f"longer than {HANGS} s")


def fuzz(name: str, examples: int, place: Path) -> str:
    """What went wrong, "" for nothing."""
    make, read = FORMATS[name]
    files = make()
    paths = {file: place / file for file in files}
    for file, content in files.items():
        paths[file].write_bytes(content)
    main = next(iter(files))
    read(paths[main])  # the valid one

    @seed(20261129)
    @settings(max_examples=examples, deadline=None, database=None, print_blob=False,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data):
        chosen = data.draw(st.sampled_from(sorted(files)))
        paths[chosen].write_bytes(data.draw(mutated(files[chosen])))
        (place / "now").write_text(f"{name}: {chosen}")
        signal.alarm(HANGS)
        try:
            with warnings.catch_warnings(action="ignore"):
                read(paths[main])
        except SpinverseError as error:
            assert "\n" not in str(error), f"more than a line: {error}"
        finally:
            signal.alarm(0)
            for file in files:
                if file != chosen:
                    paths[file].write_bytes(files[file])
            kept[0] = paths[chosen].read_bytes()
            paths[chosen].write_bytes(files[chosen])

    kept = [b""]
    try:
        check()
    except BaseException as error:
        bad = Path(tempfile.mkdtemp(prefix="fuzz-")) / main
        bad.write_bytes(kept[0])
        lines = traceback.format_exception(error)
        return f"{name}: {type(error).__name__}: {error} ({bad})\n{''.join(lines[-8:])}"
    return ""


def run(examples: int, names: list[str]) -> int:
    faulthandler.enable()
    signal.signal(signal.SIGALRM, ring)
    small_mesh()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    wrong = 0
    for name in names or FORMATS:
        with tempfile.TemporaryDirectory() as place:
            said = fuzz(name, examples, Path(place))
        wrong += bool(said)
        print(said or f"{name}: {examples} examples", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
