"""What tests of mesh builders look at."""

import numpy as np

from spinverse.mesh.checks import cell_volumes, facets_of, find_facets


def held(data) -> np.ndarray:
    """Volume (area, length) of the cells of each tag, from 1 on."""
    return np.bincount(data.cell_tags, weights=cell_volumes(data.points, data.cells))[1:]


def check_interfaces(data) -> None:
    """The interface is exactly what lies between different tags, with the lower tag."""
    facets, pairs = facets_of(data.cells)
    tags = np.where(pairs < 0, -1, data.cell_tags[pairs])
    place = find_facets(facets, data.interface_facets)
    between = np.flatnonzero((pairs[:, 1] >= 0) & (tags[:, 0] != tags[:, 1]))
    assert sorted(place) == between.tolist()
    assert (tags[place].min(axis=1) == data.interface_tags).all()
