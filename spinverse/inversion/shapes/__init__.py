"""The search for the shapes of cells: which mesh cells lie inside, with membranes around them.

    hypothesis   labels of the mesh cells, and unknown numbers (theta)
    models       signals of hypotheses: fast models, slopes by theta, the full model
    look         measurements that a strategy looks at
    score        what a misfit is worth: explained, near, likelier
    ledger       best hypothesis, budget, random streams, checkpoints
    schedule     the list of strategies, and the loop that runs them
    strategies   functions from hypotheses to hypotheses, one a file
    walk         from partition to partition: `surrogate` of moves, `anneal`, verification
    ellipsoids, levels, graded   starts: sharp, smooth, shares of cells
    cells, placements            which partitions are allowed, moves, places
    settings     how much work; stage: the search as a stage of a reconstruction
"""
