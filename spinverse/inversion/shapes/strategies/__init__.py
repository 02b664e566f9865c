"""Strategies of the search: functions from hypotheses to hypotheses under a ledger, one a file.

    one_cell        random ellipsoids, then walks of the best
    two_cells       random pairs of ellipsoids, put in their places, then walks
    graded_shapes   soft ellipsoids, smooth shapes, shares of cells, made sharp; then walks
    smooth_shapes   on large meshes: ellipsoids, made level sets of polynomials; then walks
    polish          walks on from the best of many that explain noisy data
    walking         what they share: walks of starts, places, who is followed
"""
