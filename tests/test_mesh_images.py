"""Label images to meshes."""

import numpy as np
import pytest

from spinverse.errors import InputError
from spinverse.mesh.checks import UnitWarning, cell_volumes, facets_of, quality
from spinverse.mesh.images import (
    LabelImage,
    coarsened,
    from_labels,
    interface_pairs,
    read_labels,
)


def ball(radius: float, n: int) -> np.ndarray:
    x = np.arange(n) + 0.5 - n / 2
    grid = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1)
    return (np.linalg.norm(grid, axis=-1) < radius).astype(np.int64)


def volumes(data) -> dict[int, float]:
    found = cell_volumes(data.points, data.cells)
    return {int(tag): float(found[data.cell_tags == tag].sum()) for tag in set(data.cell_tags)}


def area(data, tag: int | None = None) -> float:
    rows = data.interface_facets if tag is None else data.interface_facets[
        data.interface_tags == tag]
    a, b, c = data.points[rows].swapaxes(0, 1)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def test_staircase_is_exact():
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7))
    step = np.array([0.5, 1.0, 2.0])
    for background in (False, True):
        data = from_labels(labels, step, smooth=0, background=background)
        present = range(0 if background else 1, 4)
        assert sorted(volumes(data)) == list(present)
        for label, found in volumes(data).items():
            np.testing.assert_allclose(found, (labels == label).sum() * step.prod())
        # voxel (i, j, k) fills i to i + 1 times the step
        middle = data.points[data.cells].mean(axis=1)
        assert (labels[tuple((middle / step).astype(int).T)] == data.cell_tags).all()
        # each pair of voxel neighbours with different labels gives two triangles
        count = 0
        for axis in range(3):
            a, b = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
            count += 2 * (a != b).sum()
        assert len(data.interface_facets) == count


def test_tags_of_pairs():
    labels = np.zeros((5, 3, 3), int)
    labels[1:4, 1, 1] = 2, 2, 7
    data = from_labels(labels, 1.0, smooth=0)
    assert interface_pairs(data) == {1: (0, 2), 2: (0, 7), 3: (2, 7)}
    facets, pairs = facets_of(data.cells)
    sides = np.sort(np.where(pairs < 0, 0, data.cell_tags[pairs]), axis=1)
    for tag, wanted in interface_pairs(data).items():
        found = facets[(sides == wanted).all(axis=1)]
        assert (data.interface_facets[data.interface_tags == tag] == found).all()
    assert [area(data, tag) for tag in (1, 2, 3)] == [9, 5, 1]
    both = from_labels(labels, 1.0, background=True)
    assert interface_pairs(both) == interface_pairs(data) and set(both.cell_tags) == {0, 2, 7}


def test_a_cell_cut_by_the_border_has_no_membrane_there():
    data = from_labels(np.ones((2, 2, 2), int), 1.0)
    assert len(data.interface_facets) == 0 and volumes(data) == {1: 8.0}
    split = from_labels(np.array([1, 2]).reshape(2, 1, 1) * np.ones((2, 3, 3), int), 1.0)
    assert area(split) == 9.0  # smoothing keeps planes, and the box
    np.testing.assert_allclose(volumes(split)[1], 9.0)


@pytest.mark.parametrize("background", [False, True])
def test_smoothing_mends_the_area_and_keeps_the_volume(background):
    radius, step = 7.3, 0.5
    wanted = 4 * np.pi * (radius * step)**2
    labels = ball(radius, 18)
    rough = from_labels(labels, step, smooth=0, background=background)
    fine = from_labels(labels, step, background=background)
    assert 1.4 < area(rough) / wanted < 1.6
    assert 0.97 < area(fine) / wanted < 1.06
    np.testing.assert_allclose(volumes(fine)[1], volumes(rough)[1], rtol=0.01)
    if background:
        np.testing.assert_allclose(sum(volumes(fine).values()), (18 * step)**3)
    assert quality(fine).min() > 0.005
    assert (fine.cells == rough.cells).all()


def test_smoothing_never_breaks_a_mesh():
    rng = np.random.default_rng(2)
    for k in range(12):
        labels = rng.integers(0, 4, rng.integers(2, 7, 3))
        step = rng.uniform(0.2, 2.0, 3)
        data = from_labels(labels, step, smooth=15, background=bool(k % 2))  # it checks itself
        if k % 2:
            np.testing.assert_allclose(sum(volumes(data).values()), labels.size * step.prod())


def test_coarsening():
    image = LabelImage(np.kron(np.array([[[1, 0], [2, 2]]]), np.ones((1, 3, 3), int)),
                       (3.0, 1.0, 1.0))
    coarse = coarsened(image, 3.0)
    assert coarse.labels.tolist() == [[[1, 0], [2, 2]]]
    assert coarse.voxel_size.tolist() == [3, 3, 3]
    noisy = np.zeros((4, 4, 4), int)
    noisy[:2, :2, :2] = [[[5, 5], [5, 5]], [[5, 1], [1, 1]]]
    noisy[2:, 2:, 2:] = [[[4, 4], [4, 4]], [[1, 1], [1, 1]]]
    labels = coarsened(LabelImage(noisy, 1.0), 2.0).labels
    assert labels[0, 0, 0] == 5 and labels[1, 1, 1] == 1  # the lowest of equals
    assert coarsened(LabelImage(np.ones((5, 5, 5), int), 1.0), 2.0).labels.shape == (3, 3, 3)
    assert coarsened(image, 1.0).labels is image.labels
    data = from_labels(ball(7.3, 16), 0.5, size=1.0)
    np.testing.assert_allclose(volumes(data)[1], 4 / 3 * np.pi * 3.65**3, rtol=0.1)
    assert len(data.cells) < 6 * 8**3


def test_files_of_numpy(tmp_path):
    labels = ball(2.3, 6).astype(np.uint8)
    np.save(tmp_path / "a.npy", labels)
    np.savez(tmp_path / "b.npz", labels=labels, voxel_size=[1, 1, 2.0], remark=3)
    np.savez(tmp_path / "c.npz", cell=labels.astype(bool))
    a = from_labels(str(tmp_path / "a.npy"), voxel_size=0.5)
    assert "a.npy (voxels of 0.5 x 0.5 x 0.5 um)" == a.name
    assert read_labels(tmp_path / "b.npz").voxel_size.tolist() == [1, 1, 2]
    assert read_labels(tmp_path / "b.npz", 3).voxel_size.tolist() == [3, 3, 3]
    assert (read_labels(tmp_path / "c.npz", 1).labels == labels).all()


@pytest.mark.parametrize(("unit", "spacing"), [("mm", 5e-4), ("micron", 0.5), ("meter", 5e-7),
                                               ("unknown", 5e-4)])
def test_nifti(tmp_path, unit, spacing):
    nibabel = pytest.importorskip("nibabel")
    labels = np.zeros((4, 5, 6), np.int16)
    labels[1:3, 1:3, 1:3] = 3
    image = nibabel.Nifti1Image(labels, np.diag([-spacing, spacing, 2 * spacing, 1]))
    image.header.set_xyzt_units(unit)
    path = tmp_path / "cell.nii.gz"
    nibabel.save(image, path)
    if unit == "unknown":
        with pytest.warns(UnitWarning, match="names no unit.*0.5 x 0.5 x 1 um"):
            found = read_labels(path)
    else:
        found = read_labels(path)
    np.testing.assert_allclose(found.voxel_size, [0.5, 0.5, 1.0], rtol=1e-6)
    assert (found.labels == labels).all()
    if unit == "micron":
        data = from_labels(path, smooth=0)
        np.testing.assert_allclose(volumes(data)[3], 8 * 0.25)
        floats = nibabel.Nifti1Image(labels.astype(np.float32)[..., None], np.eye(4))
        floats.header.set_xyzt_units("micron")
        nibabel.save(floats, path)
        assert (read_labels(path).labels == labels).all()


@pytest.mark.parametrize(("labels", "options", "words"), [
    (np.ones((2, 2)), {"voxel_size": 1}, "has shape (2, 2)"),
    (np.ones((0, 2, 2), int), {"voxel_size": 1}, "has shape (0, 2, 2)"),
    (np.full((2, 2, 2), 0.5), {"voxel_size": 1}, "no integers"),
    (np.full((2, 2, 2), np.nan), {"voxel_size": 1}, "no integers"),
    (np.full((2, 2, 2), -1), {"voxel_size": 1}, "labels are -1 to -1"),
    (np.full((2, 2, 2), 2**40), {"voxel_size": 1}, "expected 0 to 2147483647"),
    (np.full((2, 2, 2), "a"), {"voxel_size": 1}, "expected integers"),
    (np.zeros((2, 2, 2), int), {"voxel_size": 1}, "label 0 only"),
    (np.ones((2, 2, 2), int), {}, "voxel_size is None"),
    (np.ones((2, 2, 2), int), {"voxel_size": -1}, "voxel_size"),
    (np.ones((2, 2, 2), int), {"voxel_size": (1, 2)}, "voxel_size"),
    (np.ones((2, 2, 2), int), {"voxel_size": 1, "smooth": -1}, "smooth is -1"),
    (np.ones((2, 2, 2), int), {"voxel_size": 1, "smooth": 1.5}, "smooth is 1.5"),
    (np.ones((2, 2, 2), int), {"voxel_size": 1, "size": 0.1}, "size is 0.1 um"),
    (np.ones((2, 2, 2), int), {"voxel_size": 1, "background": 3}, "background is 3"),
    (np.ones((200, 200, 200), np.uint8), {"voxel_size": 1}, "cells, expected at most"),
])
def test_bad_images(labels, options, words):
    with pytest.raises(InputError) as caught:
        from_labels(labels, **options)
    assert words in str(caught.value) and "expected" in str(caught.value)


def test_bad_files(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "nosize.npy", np.ones((2, 2, 2), int))
    for name in ("noise.npy", "noise.npz"):
        (tmp_path / name).write_bytes(b"\x00\x01 noise")
    cases = {"none.npy": "no such file", "image.tif": "suffix is '.tif'", "two.npz": "holds a, b",
             "object.npy": "cannot be read as .npy", "noise.npy": "cannot be read as .npy",
             "noise.npz": "cannot be read as .npz", "nosize.npy": "holds no voxel size"}
    for name, words in cases.items():
        with pytest.raises(InputError) as caught:
            read_labels(tmp_path / name)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_noise_is_no_nifti(tmp_path):
    pytest.importorskip("nibabel")
    for name in ("noise.nii", "noise.nii.gz"):
        (tmp_path / name).write_bytes(b"\x00\x01 noise")
        with pytest.raises(InputError, match="cannot be read as NIfTI"):
            read_labels(tmp_path / name)


@pytest.mark.parametrize("seed", [1, 24, 27, 31])
def test_smoothed_cells_that_nearly_touch_stay_apart(seed):
    """Corners in a gap, or around an edge that two cells share, do not pass each other."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (7, 7, 7))
    rough = from_labels(labels, 1.0, smooth=0)
    data = from_labels(labels, 1.0, smooth=30)  # checked, as all meshes are
    assert (data.cells == rough.cells).all() and (data.cell_tags == rough.cell_tags).all()
    assert (data.interface_facets == rough.interface_facets).all()
