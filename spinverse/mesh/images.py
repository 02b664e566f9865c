"""Label images (segmentations) to tetrahedral meshes: one compartment for each label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation

from spinverse.errors import InputError, one_line, warn_caller
from spinverse.mesh.arguments import affordable, each, positive, shown
from spinverse.mesh.checks import UnitWarning, facets_of, find_facets
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import kuhn_steps
from spinverse.mesh.smoothing import smoothed

# NIfTI-1 xyzt_units, by the names of nibabel
UM_PER_UNIT = {"meter": 1e6, "mm": 1e3, "micron": 1.0, "unknown": 1e3}


@dataclass(frozen=True, eq=False)
class LabelImage:
    """A segmentation: an integer label for each voxel, 0 for what is outside all cells.

    Attributes:
        labels: ``(nx, ny, nz)`` int64, at least 0.
        voxel_size: along the three axes, ``(3,)`` float64, um.
        name: for messages.

    Raises:
        InputError: not three-dimensional, no integers, negative ones, no positive voxel size.
    """

    labels: np.ndarray
    voxel_size: np.ndarray
    name: str = "image"

    def __post_init__(self):
        where = f"label image '{self.name}'"
        labels = np.asarray(self.labels)
        if labels.ndim != 3 or not labels.size:
            raise InputError(f"{where}: has shape {labels.shape}, expected three dimensions")
        if labels.dtype.kind == "f":
            if not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
                raise InputError(f"{where}: holds values that are no integers, expected labels")
        elif labels.dtype.kind not in "iub":
            raise InputError(f"{where}: has type {labels.dtype}, expected integers")
        if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
            raise InputError(f"{where}: labels are {labels.min():g} to {labels.max():g}, expected "
                             f"0 to {np.iinfo(np.int32).max}")
        object.__setattr__(self, "voxel_size", each(where, "voxel_size", self.voxel_size, 3))
        object.__setattr__(self, "labels", labels.astype(np.int64))


def read_labels(path: str | Path, voxel_size=None) -> LabelImage:
    """Read a segmentation.

    * ``.npy``: the array; ``.npz``: the key ``labels`` (or the only array), and ``voxel_size`` in
      um unless it is given.
    * ``.nii``, ``.nii.gz``: voxel size from the header, in the units that it names; millimetres,
      with a :class:`.UnitWarning`, where it names none. Axes are those of the array: rotations and
      flips of the affine are left out. Needs nibabel.

    Args:
        voxel_size: um, one number or three; goes before what the file says.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be parsed, no voxel size,
            or what :class:`LabelImage` refuses.
    """
    path = Path(path)
    where = f"label image '{path}'"
    name = path.name.lower()
    if not name.endswith((".npy", ".npz", ".nii", ".nii.gz")):
        raise InputError(f"{where}: suffix is '{path.suffix}', expected .npy, .npz, .nii or "
                         ".nii.gz")
    if not path.is_file():
        raise InputError(f"{where}: no such file, expected an image")
    labels, found = _numpy(path, where, name[-4:]) if name.endswith((".npy", ".npz")) else \
        _nifti(path, where, warn=voxel_size is None)
    voxel_size = found if voxel_size is None else voxel_size
    if voxel_size is None:
        raise InputError(f"{where}: holds no voxel size, expected voxel_size in um")
    return LabelImage(labels, voxel_size, path.name)


def from_labels(image, voxel_size=None, size: float | None = None, smooth: int = 10,
                background: bool = False) -> MeshData:
    """Mesh a segmentation: every voxel becomes six tetrahedra (Kuhn), so it always works.

    Cell tags are the labels. Interface facets are those between different labels; their tags
    number the pairs of labels that touch, (0, 1), (0, 2), ..., (1, 2), ..., from 1 on
    (:func:`interface_pairs` tells them of a mesh). Voxel (i, j, k) fills i to i + 1 times the
    voxel size along x, and so on. A cell that the border of the image cuts has no membrane there.

    Args:
        image: a :class:`LabelImage`, a file for :func:`read_labels`, or an integer array
            ``(nx, ny, nz)``.
        voxel_size: um, one number or three; needed for an array.
        size: edge length to coarsen to, um: a block of voxels becomes one with the commonest label
            in it (the lowest of equals). ``None``: the voxels as they are.
        smooth: steps of Taubin's smoothing of the interfaces; 0 leaves the voxels' staircase,
            whose volumes are exact and whose area is up to 1.5 (a plane: 1.7) times too large.
        background: mesh label 0 too, with cell tag 0; without it nothing outside is meshed.

    Raises:
        InputError: a bad argument or image, nothing to mesh, or too many voxels.
    """
    owner = "from_labels"
    if isinstance(image, str | Path):
        image = read_labels(image, voxel_size)
    elif isinstance(image, LabelImage):
        image = image if voxel_size is None else replace(image, voxel_size=voxel_size)
    elif voxel_size is None:
        raise InputError(f"{owner}: voxel_size is None, expected um for an array")
    else:
        image = LabelImage(image, voxel_size)
    if isinstance(smooth, bool) or not isinstance(smooth, int | np.integer) or smooth < 0:
        raise InputError(f"{owner}: smooth is {shown(smooth)}, expected a number of steps")
    if not isinstance(background, bool | np.bool_):
        raise InputError(f"{owner}: background is {shown(background)}, expected true or false")
    if size is not None:
        image = coarsened(image, positive(owner, "size", size))
    labels, step = image.labels, image.voxel_size
    meshed = np.ones(labels.shape, bool) if background else labels > 0
    if smooth:  # with the voxels around, whose tets keep cells apart that nearly touch
        meshed = binary_dilation(meshed, np.ones((3, 3, 3)))
    where = f"label image '{image.name}'"
    if not (labels > 0).any():
        raise InputError(f"{where}: holds label 0 only, expected at least one cell")
    affordable(where, 6.0 * meshed.sum())
    shape = np.array(labels.shape) + 1  # of the grid's nodes
    lowest = np.asarray(np.ravel_multi_index(np.nonzero(meshed), shape))
    used, numbers = np.unique(lowest[:, None, None] + kuhn_steps(shape), return_inverse=True)
    nodes, tets = np.stack(np.unravel_index(used, shape), axis=1), numbers.reshape(-1, 4)
    tags = np.repeat(labels[meshed], 6)
    facets, pairs = facets_of(tets, image.name)
    sides = np.sort(np.where(pairs < 0, 0, tags[pairs]), axis=1)
    corners = nodes[facets]
    border = ((corners == 0).all(axis=1) | (corners == labels.shape).all(axis=1)).any(axis=1)
    chosen = (sides[:, 0] != sides[:, 1]) & ~border
    interface, points = facets[chosen], nodes * step
    _, kinds = np.unique(sides[chosen], axis=0, return_inverse=True)
    if smooth:
        points = smoothed(points, tets, interface, int(smooth), np.zeros(3),
                          np.array(labels.shape) * step)
    if not background:
        used, numbers = np.unique(tets[tags > 0], return_inverse=True)
        points, tets, tags = points[used], numbers.reshape(-1, 4), tags[tags > 0]
        interface = np.searchsorted(used, interface)
    size_text = " x ".join(f"{v:.6g}" for v in step)
    return MeshData(points, tets, tags, interface, kinds.ravel() + 1,
                    name=f"{image.name} (voxels of {size_text} um)").check()


def interface_pairs(data: MeshData) -> dict[int, tuple[int, int]]:
    """The two cell tags on the sides of each interface tag, the lower first; 0: nothing."""
    facets, pairs = facets_of(data.cells, data.name)
    tags, first = np.unique(data.interface_tags, return_index=True)
    sides = pairs[find_facets(facets, data.interface_facets[first])]
    both = np.sort(np.where(sides < 0, 0, data.cell_tags[sides]), axis=1)
    return dict(zip(tags.tolist(), map(tuple, both.tolist()), strict=True))


def coarsened(image: LabelImage, size: float) -> LabelImage:
    """Blocks of voxels of about ``size`` um as one voxel, with the commonest label in the block."""
    if 1.5 * size < image.voxel_size.min():
        raise InputError(f"label image '{image.name}': size is {size:g} um, expected at least the "
                         f"voxel size {image.voxel_size.min():g} um")
    block = np.maximum(1, np.rint(size / image.voxel_size)).astype(int)
    if (block == 1).all():
        return image
    missing = -np.array(image.labels.shape) % block
    labels = np.pad(image.labels, [(0, m) for m in missing], mode="edge")
    counts = np.array(labels.shape) // block
    labels = labels.reshape(np.stack([counts, block], axis=1).ravel())
    labels = np.sort(labels.transpose(0, 2, 4, 1, 3, 5).reshape(counts.prod(), -1))
    best, (longest, run) = labels[:, 0].copy(), np.zeros((2, len(labels)), int)
    for k in range(labels.shape[1]):
        run = np.where(labels[:, k] == labels[:, max(k - 1, 0)], run + 1, 1)
        better = run > longest
        best[better], longest[better] = labels[better, k], run[better]
    return LabelImage(best.reshape(counts), image.voxel_size * block, image.name)


def _numpy(path: Path, where: str, kind: str):
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded as file:
            keys = [key for key in file.files if key != "voxel_size"]
            key = keys[0] if len(keys) == 1 else "labels"
            size = file["voxel_size"].tolist() if "voxel_size" in file.files else None
            labels = file[key] if key in keys else None
    except Exception as error:  # zip, pickle and header errors have no common base
        raise InputError(f"{where}: cannot be read as {kind} ({one_line(error)[:200]}), "
                         "expected a numpy array") from None
    if labels is None:
        raise InputError(f"{where}: holds {', '.join(keys) or 'nothing'}, expected the key "
                         "'labels'")
    return labels, size


def _nifti(path: Path, where: str, warn: bool):
    try:
        import nibabel
    except ImportError:
        raise InputError("nibabel is not installed, expected it for NIfTI images: "
                         "pip install 'spinverse[mesh]'") from None
    try:
        image = nibabel.load(path)
        unit = image.header.get_xyzt_units()[0]
        zooms = np.array(image.header.get_zooms()[:3], float)
        labels = np.asarray(image.dataobj)
    except Exception as error:  # nibabel, zlib and numpy errors
        raise InputError(f"{where}: cannot be read as NIfTI ({one_line(error)[:200]}), "
                         "expected an image") from None
    while labels.ndim > 3 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    size = np.round(zooms * UM_PER_UNIT[unit], 9)
    if unit == "unknown" and warn:
        warn_caller(f"{where}: the header names no unit of length, millimetres are taken: "
                    f"voxels of {' x '.join(f'{v:.6g}' for v in size)} um (voxel_size says "
                    "otherwise)", UnitWarning)
    return labels, size if len(size) == 3 else None
