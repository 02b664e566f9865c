"""Strategies of the search: functions from hypotheses to hypotheses under a ledger, one a file.

    smooth_shapes   random ellipsoids, made level sets of polynomials; then walks
    graded_shapes   soft ellipsoids, smooth shapes, shares of cells, made sharp; then walks
    two_cells       the best pairs of ellipsoids, put in their places, then walks
    one_cell        in periodic boxes: random ellipsoids, then walks of the best
    smooth_surface  cuts through mesh cells, where these do not explain the data
    polish          walks on from the best of many that explain noisy data
    starting        what they share: the best ellipsoids, of one cell and of several
    walking         likewise: walks of starts, places, who is followed
"""
