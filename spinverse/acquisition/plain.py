"""Signals as numbers alone: a column of text, a numpy array, a voxel of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError, one_line
from .files import numbers, read_lines

IMAGES = (".nii", ".nii.gz")
KINDS = (".csv", ".npz", ".npy", ".txt")


def plain_values(path: Path, voxel=None) -> np.ndarray | None:
    """The numbers of a file that holds nothing else, shape (N,); None for a table of measurements.

    It is ``.npy``, ``.nii`` or ``.nii.gz`` with a voxel (i, j, k), or a ``.txt`` or ``.csv`` with a
    number a line.
    """
    image = path.name.lower().endswith(IMAGES)
    if image != (voxel is not None):
        raise InputError(f"{path}: voxel: " + ("missing, expected [i, j, k], counted from 0"
                                               if image else "given, expected it for an image "
                                               f"({' or '.join(IMAGES)}) only"))
    if not image and path.suffix.lower() not in KINDS:
        raise InputError(f"{path}: suffix {path.suffix!r}, expected one of "
                         f"{', '.join((*KINDS, *IMAGES))}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if image:
        return _voxel(path, voxel)
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as .npy ({one_line(error)})") from None
        if values.dtype.kind not in "iufc" or values.size != max(values.shape, default=0):
            raise InputError(f"{path}: {values.dtype} of shape {values.shape}, expected numbers "
                             "(N,), one a measurement")
        return values.ravel()
    if path.suffix.lower() == ".npz":
        return None
    rows = [(k, line.split("#")[0].replace(",", " ").split())
            for k, line in enumerate(read_lines(path), start=1)]
    rows = [(k, cells) for k, cells in rows if cells]
    if path.suffix.lower() == ".csv":
        try:
            first = numbers(path, *rows[0]) if rows else []
        except InputError:  # names of columns
            first = []
        if len(first) != 1:
            return None
    table = [numbers(path, k, cells) for k, cells in rows]
    if len(table) == 1:
        return np.array(table[0])
    for (k, cells), row in zip(rows, table, strict=True):
        if len(row) != 1:
            raise InputError(f"{path}: line {k}: {len(cells)} numbers, expected one a line (or all "
                             "in one line), one a measurement")
    return np.array(table).ravel()


def _voxel(path: Path, voxel) -> np.ndarray:
    try:
        import nibabel
    except ImportError:
        raise InputError("nibabel is not installed, expected it for NIfTI images: "
                         "pip install 'spinverse[mesh]'") from None
    try:
        data = nibabel.load(path).dataobj
        shape = data.shape
    except Exception as error:  # nibabel and zlib errors
        raise InputError(f"{path}: cannot be read as NIfTI ({one_line(error)[:200]})") from None
    if len(shape) != 4 or not all(shape):
        raise InputError(f"{path}: has shape {shape}, expected (x, y, z, measurements)")
    place = np.asarray(voxel)
    if place.shape != (3,) or place.dtype.kind not in "iu" or (place < 0).any() \
            or (place >= shape[:3]).any():
        raise InputError(f"{path}: voxel: {voxel}, expected [i, j, k] inside {shape[:3]}, counted "
                         "from 0")
    i, j, k = place.tolist()
    try:
        return np.asarray(data[i, j, k])
    except Exception as error:  # a file that is cut off
        raise InputError(f"{path}: cannot be read as NIfTI ({one_line(error)[:200]})") from None
