"""What signals are expanded in.

    eigenmodes   the lowest modes; chooses a dense solver, SLEPc with a factor, or `blocks`
    blocks       those of large meshes, without a factor, from a coarse space (`two_level`)
    responses    a Krylov space of the start: smaller where walls are half closed
    drifting     modes and their drifts along periodic axes
    dense        LAPACK, for small problems
    parts        bases of parts that exchange nothing, like ones once
    spectrum     refuses operators that are not symmetric or not positive; counts eigenvalues
"""
