"""Rows that go from rank to rank, and files that all ranks write and read."""

from __future__ import annotations

import errno
import zipfile
import zlib

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import mesh
from spinverse.errors import InputError, on_all, on_root
from spinverse.mesh import Ball
from spinverse.mesh.ordered import FacetRows, FacetSlabs
from spinverse.parallel import files, npz
from spinverse.parallel.exchange import Ranges, Route, gather_chosen, scatter, summed


def together(comm, rows):
    return np.concatenate(comm.allgather(np.asarray(rows)))


def mine(comm, array):
    """This rank's rows, not as many on each."""
    bounds = [len(array) * rank**2 // comm.size**2 for rank in range(comm.size + 1)]
    return array[bounds[comm.rank]: bounds[comm.rank + 1]]


ARRAYS = {
    "triples": np.arange(51 * 3).reshape(51, 3),
    "values": np.sin(np.arange(51.0)),
    "flags": np.arange(51) % 3 == 0,
    "deep": np.arange(51 * 4.0).reshape(51, 2, 2),
    "none": np.empty((0, 2)),
    "few": np.arange(1, dtype=np.int32),
}
PLAIN = {"name": np.array("µm"), "number": np.array(3), "list": np.arange(4.0)}


def write(comm, path):
    arrays = {name: npz.Rows(mine(comm, array)) for name, array in ARRAYS.items()}
    npz.write_npz(comm, path, arrays | PLAIN)


# ---- rows -----------------------------------------------------------------------------------

@pytest.mark.mpi
@pytest.mark.parametrize("total", [0, 1, 2, 7, 1000, 10**12 + 7])
def test_even_ranges(comm, total):
    ranges = Ranges(comm, total)
    lengths = np.diff(ranges.bounds)
    assert lengths.sum() == total and lengths.max() - lengths.min() <= 1
    numbers = np.unique(np.clip([0, 1, total // 3, total // 2, total - 1], 0, max(total - 1, 0)))
    for number in numbers[: total]:
        rank = int(ranges.holder(number))
        assert ranges.bounds[rank] <= number < ranges.bounds[rank + 1]


@pytest.mark.mpi
@pytest.mark.parametrize("total", [0, 1, 40])
def test_values_come_from_those_who_have_them(comm, total):
    whole = np.arange(2 * total).reshape(total, 2) * 1.5
    ranges = Ranges(comm, total)
    numbers = np.arange(comm.rank, total, 3)[::-1].repeat(2)
    found = ranges.fetch(numbers, whole[ranges.start: ranges.stop])
    assert np.array_equal(found, whole[numbers])
    assert np.array_equal(scatter(comm, whole if comm.rank == 0 else None),
                          whole[ranges.start: ranges.stop])


@pytest.mark.mpi
def test_a_route_there_and_back(comm):
    to = (np.arange(11) + comm.rank) % comm.size
    route = Route(comm, to)
    for rows in (np.arange(11) + 100 * comm.rank, np.ones((11, 0)), np.arange(11) > 4,
                 np.arange(22.0).reshape(11, 2) * 1j):
        arrived = route.forward(rows)
        assert len(arrived) == route.received.sum()
        assert np.array_equal(route.backward(arrived), rows)
    sources = np.repeat(np.arange(comm.size), route.received)
    assert np.array_equal(route.forward(np.full(11, comm.rank)), sources)
    for there in (route.forward, route.backward):
        with pytest.raises(ValueError, match=r"shape \(3,\), expected"):
            there(np.arange(3))


@pytest.mark.mpi
def test_equal_keys_meet_and_a_few_come_to_rank_0(comm):
    keys, values = np.array([[3, 1], [0, 2], [3, 1]]) + [0, comm.rank % 2], np.array([1, 10, 100])
    everything = {(3, 1 + k % 2): 0 for k in range(comm.size)}
    for k in range(comm.size):
        everything |= {(3, 1 + k % 2): everything[3, 1 + k % 2] + 101}
        everything[0, 2 + k % 2] = everything.get((0, 2 + k % 2), 0) + 10
    keys, sums = summed(keys, values)
    route = Route(comm, keys.sum(axis=1) % comm.size)
    keys, sums = summed(route.forward(keys), route.forward(sums))
    assert together(comm, sums).sum() == 111 * comm.size
    assert all(everything[tuple(key)] == n for key, n in zip(keys.tolist(), sums, strict=True))
    whole = gather_chosen(comm, sums > 99, keys, sums)
    if comm.rank == 0:
        expected = sorted((key, n) for key, n in everything.items() if n > 99)
        assert [tuple(key) for key in whole[0].tolist()] == [key for key, _ in expected]
        assert whole[1].tolist() == [n for _, n in expected]
    assert whole is None or comm.rank == 0
    assert len(summed(np.empty((0, 2), int), np.empty(0))[0]) == 0


@pytest.mark.mpi
def test_facets_in_even_slabs(comm):
    grid = mesh.build(mesh.tagged_grid, Ball(6.0), 20.0, cells=4, comm=comm)
    slabs = grid.facet_slabs
    value = grid.facet_vertices @ [1.0, 1e3, 1e6]
    whole = comm.bcast(grid.gather_facets(value, grid.facet_corners))
    assert np.array_equal(together(comm, slabs.keys), whole[0])
    assert np.array_equal(together(comm, slabs.collect(value)), whole[1])
    assert np.array_equal(slabs.spread(slabs.collect(value)), value)
    lengths = comm.allgather(len(slabs.keys))
    assert max(lengths) - min(lengths) <= 100  # those of a vertex stay together
    cells = grid.input_cells[: grid.num_owned_cells]
    assert np.array_equal(together(comm, grid.cell_slabs.collect(cells)), np.arange(grid.num_cells))
    # rows wherever they are, and on several ranks
    order = np.random.default_rng(comm.rank).permutation(len(value))
    for mine_too in (order, order[: comm.rank * 7]):
        rows = np.concatenate([grid.facet_vertices[:, ::-1], whole[0][mine_too % len(whole[0])]])
        values = np.concatenate([value, whole[1][mine_too % len(whole[0])]])
        assert np.array_equal(grid.scatter_facets(rows, values, "v"), value)


@pytest.mark.mpi
def test_slabs_of_few_facets(comm):
    """Ranks without any, and facets that are all of one vertex."""
    facets = np.array([[0, 5], [0, 7], [0, 9]]) if comm.rank == comm.size - 1 else np.empty(
        (0, 2), int)
    slabs = FacetSlabs(comm, facets)
    assert np.array_equal(together(comm, slabs.keys), [[0, 5], [0, 7], [0, 9]])
    asked = np.array([[9, 0], [3, 1]]) if comm.rank == 0 else np.empty((0, 2), int)
    rows = FacetRows(slabs, asked)
    assert rows.missing == 2
    found = rows.values(np.arange(1, 1 + len(asked)), default=-1)
    assert found.tolist() == ([-1, -1, 1] if len(facets) else [])


# ---- files ----------------------------------------------------------------------------------

@pytest.mark.mpi
@pytest.mark.parametrize("piece", [npz.PIECE, 100])
def test_numpy_and_zipfile_read_what_all_ranks_wrote(comm, shared_tmp_path, monkeypatch, piece):
    monkeypatch.setattr(npz, "PIECE", piece)
    monkeypatch.setattr(files, "PIECE", piece)
    path = shared_tmp_path / "all.npz"
    write(comm, path)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    with np.load(path) as file:
        assert set(file.files) == {*ARRAYS, *PLAIN}
        for name, array in (ARRAYS | PLAIN).items():
            assert np.array_equal(file[name], array) and file[name].dtype == array.dtype
    if comm.rank == 0 and comm.size > 1:
        write(MPI.COMM_SELF, shared_tmp_path / "one.npz")
        assert path.read_bytes() == (shared_tmp_path / "one.npz").read_bytes()
    comm.Barrier()
    with npz.NpzReader(comm, path) as file:
        assert set(file.names) == {*ARRAYS, *PLAIN}
        for name, array in ARRAYS.items():
            assert file.shape(name) == array.shape
            assert np.array_equal(together(comm, file.rows(name)), array)
        for name, array in PLAIN.items():
            assert np.array_equal(file.whole(name), array)
    comm.Barrier()
    assert not list(shared_tmp_path.glob(".*"))


@pytest.mark.mpi
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_of_what_numpy_wrote(comm, shared_tmp_path, save):
    path = shared_tmp_path / "numpy.npz"
    fortran = {"turned": np.asfortranarray(ARRAYS["deep"]), "wide": np.arange(12.0)
               .reshape(4, 3).T, "objects": np.array([None, 1])}
    if comm.rank == 0:
        save(path, **ARRAYS, **fortran)
    comm.Barrier()
    with npz.NpzReader(comm, path) as file:
        for name, array in (ARRAYS | fortran).items():
            if name != "objects":
                found = file.rows(name)
                assert found.flags.c_contiguous
                assert np.array_equal(together(comm, found), array)
        with pytest.raises(ValueError, match="Python objects"):
            file.rows("objects")
        with pytest.raises(KeyError):
            file.rows("missing")


@pytest.mark.mpi
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_noticed_by_all(comm, shared_tmp_path, save):
    """Wherever a bit has another value, an error is raised, or what is read is what was written."""
    path = shared_tmp_path / "damaged.npz"
    if comm.rank == 0:
        save(path, values=ARRAYS["values"])
    content, unharmed = comm.bcast(path.read_bytes() if comm.rank == 0 else None), []
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 8
        if comm.rank == 0:
            path.write_bytes(damaged)
        comm.Barrier()
        try:
            with npz.NpzReader(comm, path) as file:
                found = together(comm, file.rows("values"))
            assert np.array_equal(found, ARRAYS["values"])
            unharmed.append(place / len(content))
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, OSError, RuntimeError):
            pass
        comm.Barrier()
    # dates and the like, of which zips have some at the beginning and at the end
    assert all(place < 0.1 or place > 0.6 for place in unharmed), unharmed


@pytest.mark.mpi
def test_a_write_that_fails(comm, shared_tmp_path, monkeypatch):
    """All hear of it, though they have more to send, and what was there stays."""
    path = shared_tmp_path / "kept.npz"
    write(comm, path)
    comm.Barrier()
    before = path.read_bytes()
    monkeypatch.setattr(files, "PIECE", 100)

    def full(temporary, streams):
        next(streams[1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_together(comm, path, [np.arange(1000.0)] * 3, full)
    write(comm, shared_tmp_path / "next.npz")
    comm.Barrier()
    assert path.read_bytes() == before == (shared_tmp_path / "next.npz").read_bytes()
    assert len(list(shared_tmp_path.iterdir())) == 2


@pytest.mark.mpi
def test_folders_that_cannot_be_written_to(comm, shared_tmp_path):
    if comm.rank == 0:
        (shared_tmp_path / "file").write_text("")
    comm.Barrier()
    for folder, kind in (("missing", FileNotFoundError), ("file", NotADirectoryError)):
        with pytest.raises(kind):
            write(comm, shared_tmp_path / folder / "a.npz")


@pytest.mark.mpi
def test_rows_of_one_rank_that_are_not_plain(comm, shared_tmp_path):
    values = np.arange(3.0) if comm.rank < comm.size - 1 else np.array([None, 1, 2])
    with pytest.raises(ValueError, match="expected plain values"):
        npz.write_npz(comm, shared_tmp_path / "a.npz", {"a": npz.Rows(values)})


@pytest.mark.mpi
@pytest.mark.parametrize("run, rank", [(on_all, -1), (on_root, 0)])
def test_an_error_that_pickle_does_not_know(comm, run, rank):
    class Local(Exception):
        pass

    def fail():
        if comm.rank == rank % comm.size:
            raise Local("here")

    with pytest.raises(RuntimeError, match="Local: here"):
        run(comm, fail)


@pytest.mark.mpi
def test_an_error_of_one_rank_is_raised_on_all(comm):
    def fail():
        if comm.rank == comm.size - 1:
            raise InputError("here")
        return comm.rank

    with pytest.raises(InputError, match="here"):
        on_all(comm, fail)
    assert on_all(comm, lambda: comm.rank) == comm.rank
