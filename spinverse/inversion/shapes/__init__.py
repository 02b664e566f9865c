"""Search for the shapes of cells: which mesh cells lie inside, with membranes all around them.

Graded shapes first (`graded`, `levels`): differentiable, from random ellipsoids to a sharp shape
that explains most of the data. Then moves of single mesh cells (`flips`), for which signals take
milliseconds (`engines.shapes.partition`). `search` drives both and never looks at a truth.
"""
