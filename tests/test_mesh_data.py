"""MeshData, the facet helpers and every check with its message."""

import warnings

import numpy as np
import pytest

from spinverse.errors import InputError
from spinverse.mesh.builders import box
from spinverse.mesh.checks import UnitWarning, cell_volumes, facets_of, find_facets, quality
from spinverse.mesh.data import MeshData

CORNER = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
TET = np.array([[0, 1, 2, 3]])


def two_tets(**changes) -> MeshData:
    """Two tets on either side of the facet (1, 2, 3)."""
    arrays = {"points": np.vstack([CORNER, [1.0, 1.0, 1.0]]),
              "cells": np.array([[0, 1, 2, 3], [1, 2, 3, 4]]), "name": "two"}
    return MeshData(**(arrays | changes))


def fails(data: MeshData, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        data.check()
    message = str(caught.value)
    assert "\n" not in message and f"'{data.name}'" in message and "expected" in message
    for part in parts:
        assert part in message, message


def test_defaults_and_types():
    data = two_tets(cells=[[0, 1, 2, 3], [1, 2, 3, 4]], points=two_tets().points.tolist()).check()
    assert data.points.dtype == np.float64 and data.cells.dtype == np.int64
    assert data.cell_tags.dtype == np.int32 and data.cell_tags.tolist() == [1, 1]
    assert data.interface_facets.shape == (0, 3) and data.interface_facets.dtype == np.int64
    assert data.interface_tags.shape == (0,) and data.interface_tags.dtype == np.int32
    assert data.input_vertices.tolist() == [0, 1, 2, 3, 4]


def test_triples_are_sorted_and_input_is_left_alone():
    given = np.array([[3, 1, 2]])
    data = two_tets(interface_facets=given).check()
    assert data.interface_facets.tolist() == [[1, 2, 3]] and data.interface_tags.tolist() == [1]
    assert given.tolist() == [[3, 1, 2]]


@pytest.mark.parametrize(("changes", "message"), [
    ({"points": np.zeros((5, 2))}, "points has shape (5, 2), expected (N, 3)"),
    ({"cells": np.zeros((2, 5), int)}, "cells has shape (2, 5), expected (N, 4)"),
    ({"cells": np.zeros((2, 4))}, "cells has type float64, expected integers"),
    ({"points": np.zeros((5, 3), complex)}, "points has type complex128, expected real"),
    ({"cell_tags": [1]}, "cell_tags has shape (1,), expected (2,)"),
    ({"cell_tags": [1.5, 2.0]}, "cell_tags has type float64"),
    ({"cell_tags": [1, 2**40]}, "cell_tags[1] does not fit"),
    ({"interface_facets": [[1, 2]]}, "interface_facets has shape (1, 2), expected (N, 3)"),
    ({"interface_facets": [[1, 2, 3]], "interface_tags": [1, 2]}, "interface_tags has shape"),
    ({"cells": [[0, 1, 2, 3], [1, 2]]}, "cells is ragged"),
])
def test_bad_shapes_and_types(changes, message):
    with pytest.raises(InputError) as caught:
        two_tets(**changes)
    assert message in str(caught.value) and "mesh 'two'" in str(caught.value)


def test_volumes_facets_and_quality():
    data = two_tets().check()
    np.testing.assert_allclose(cell_volumes(data.points, data.cells), [1 / 6, 1 / 3])
    facets, pairs = facets_of(data.cells)
    assert facets.tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3], [1, 2, 4],
                               [1, 3, 4], [2, 3, 4]]
    assert pairs.tolist() == [[0, -1], [0, -1], [0, -1], [0, 1], [1, -1], [1, -1], [1, -1]]
    assert find_facets(facets, [[3, 2, 1], [0, 1, 4], [4, 3, 2], [0, 0, 1]]).tolist() \
        == [3, -1, 6, -1]
    # the second tet is regular; the corner of a cube has r_in = 1 / (3 + sqrt 3)
    np.testing.assert_allclose(quality(data), [6 / (3 + 3**0.5) / 3**0.5, 1])


def test_facet_counts_of_a_grid():
    data = box((1, 1, 1), cells=(3, 4, 5))
    facets, pairs = facets_of(data.cells)
    outer = 4 * (12 + 15 + 20)
    assert (pairs[:, 1] < 0).sum() == outer and 2 * len(facets) - outer == 4 * len(data.cells)
    assert (pairs[:, 0] >= 0).all() and (pairs[pairs[:, 1] >= 0] @ [1, -1] < 0).all()
    assert (find_facets(facets, facets[::-1]) == np.arange(len(facets))[::-1]).all()


def test_no_tets():
    fails(MeshData(CORNER, []), "holds no tetrahedra")


def test_points_not_finite():
    points = CORNER.copy()
    points[2, 1] = np.nan
    fails(MeshData(points, TET), "point 2", "nan", "finite")


@pytest.mark.parametrize("vertex", [-1, 4])
def test_vertex_out_of_range(vertex):
    fails(MeshData(CORNER, [[0, 1, 2, vertex]]), "tet 0", str(vertex), "0 to 3")
    fails(MeshData(CORNER, TET, interface_facets=[[0, 1, vertex]]), "interface facet 0")


def test_repeated_vertex():
    fails(two_tets(cells=[[0, 1, 2, 3], [1, 2, 2, 4]]), "tet 1 repeats a vertex", "(1, 2, 2, 4)")


def test_duplicated_tet():
    fails(two_tets(cells=[[0, 1, 2, 3], [1, 2, 3, 4], [2, 0, 1, 3]]), "tet 2 duplicates tet 0")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_flat_tet_at_any_scale(scale):
    points = two_tets().points.copy()
    points[4] = [0.4, 0.4, 0.2 + 1e-13]
    fails(two_tets(points=points * scale), "1 of 2 tets have no volume", "first tet 1")


def test_thin_tets_are_fine():
    points = two_tets().points * [1.0, 1.0, 1e-4]
    two_tets(points=points).check()


def test_inverted_tets():
    fails(two_tets(cells=[[0, 1, 2, 3], [2, 1, 3, 4]]), "1 of 2 tets are inverted", "first tet 1",
          "-0.333333 um^3")


def test_unreferenced_vertex():
    points = np.vstack([CORNER, [[5, 5, 5], [6, 6, 6]]])
    fails(MeshData(points, TET), "2 of 6 vertices belong to no cell", "vertex 4")


def test_coincident_vertices():
    """Two tets that touch geometrically and do not share their vertices."""
    points = np.vstack([CORNER, CORNER[1:] + 1e-12, [[1, 1, 1]]])
    fails(MeshData(points, [[0, 1, 2, 3], [4, 5, 6, 7]]), "vertices 1 and 4 coincide",
          "(3 pairs)")


def test_facet_of_three_tets():
    points = np.vstack([two_tets().points, [2.0, 2.0, 2.0]])
    tets = [[0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]]
    fails(two_tets(points=points, cells=tets), "facet (1, 2, 3) belongs to 3 tets")


def joined(left: MeshData, right: MeshData) -> MeshData:
    """Both in one, with coincident vertices merged."""
    points = np.vstack([left.points, right.points])
    _, first, number = np.unique(points.round(9), axis=0, return_index=True,
                                 return_inverse=True)
    tets = np.vstack([left.cells, right.cells + len(left.points)])
    return MeshData(points[first], number.reshape(-1)[tets], name="joined")


def test_hanging_nodes():
    left = box((1, 1, 1), cells=(1, 1, 1))
    fails(joined(left, box((1, 1, 1), cells=(2, 2, 2), centre=(1, 0, 0))),
          "lies on boundary facet", "hanging")


def test_mismatched_diagonals():
    left = box((1, 1, 1), cells=(1, 1, 1))
    right = box((1, 1, 1), cells=(1, 1, 1), centre=(1, 0, 0))
    joined(left, right).check()
    mirrored = MeshData(right.points * [1, -1, 1], right.cells[:, [0, 1, 3, 2]])
    fails(joined(left, mirrored), "overlap", "conforming")


@pytest.mark.parametrize(("points", "cells", "words"), [
    # two tets in each other; a ball in a box that gmsh did not fragment is the same
    ([[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4], [.7, .9, 1.1], [4.7, .9, 1.1], [.7, 4.9, 1.1],
      [.7, .9, 5.1]], [[0, 1, 2, 3], [4, 5, 6, 7]], "cells overlap: tet 0 holds"),
    ([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [.2, .2, .7]], [[0, 1, 2, 3], [0, 1, 2, 4]],
     "tets 0 and 1 overlap, on the same side of their facet (0, 1, 2)"),
    # of the outer one no vertex, edge or facet is in the inner one
    ([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [1, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 2]],
     [[0, 1, 2, 3], [4, 5, 6, 7]], "cells overlap: tet 0 holds"),
    ([[0, 0, 0], [2, 0, 0], [0, 2, 0], [.5, .5, 0], [3, .5, 0], [.5, 3, 0]],
     [[0, 1, 2], [3, 4, 5]], "cells overlap: triangle 0"),
    ([[0, 0, 0], [2, 0, 0], [1, 0, 0], [3, 0, 0]], [[0, 1], [2, 3]],
     "cells overlap: interval 0"),
    ([[0, 0, 0], [2, 0, 0], [1, 0, 0]], [[0, 1], [0, 2]], "intervals 0 and 1 overlap"),
])
def test_cells_that_overlap(points, cells, words):
    fails(MeshData(np.array(points, float), cells), words, "expected")


def test_cells_that_meet_do_not_overlap():
    """In a vertex, an edge, a facet, or across a thin gap."""
    one = box((1, 1, 1), cells=(2, 2, 2))
    for centre in ((1, 0, 0), (1, 1, 0), (1, 1, 1), (1 + 1e-6, 0.1, 0.2)):
        joined(one, box((1, 1, 1), cells=(2, 2, 2), centre=centre)).check()


def test_interface_facet_that_is_none():
    fails(two_tets(interface_facets=[[1, 2, 3], [4, 1, 0]]),
          "interface facet 1 (0, 1, 4) is no facet")


def test_duplicated_interface_facet():
    fails(two_tets(interface_facets=[[1, 2, 3], [0, 1, 2], [3, 2, 1]]),
          "interface facet 2 duplicates interface facet 0 (1, 2, 3)")


def test_flat_cells_are_warned_of():
    points = two_tets().points * [1.0, 1.0, 0.02]
    with pytest.warns(UserWarning, match=r"2 of 2 tets are nearly flat.*radius ratio is 0.0"):
        two_tets(points=points).check()
    with pytest.warns(UserWarning, match="1 of 1 triangles are nearly flat"):
        MeshData([[0, 0, 0], [9, 0, 0], [4, 0.1, 0]], [[0, 1, 2]]).check()


@pytest.mark.parametrize(("scale", "warns"), [(1e-6, True), (0.1, False), (1e4, False),
                                              (1e6, True)])
def test_unit_warning(scale, warns):
    data = two_tets(points=two_tets().points * scale)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert data.check() is data
    assert [w.category for w in caught] == [UnitWarning] * warns
    assert not warns or "metres" in str(caught[0].message)
