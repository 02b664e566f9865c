"""The two forward engines, and the fast models of the shape search.

Imports go up in this list, never down:

    derivatives             of the weak form by its coefficients
    schedule                which measurements are propagated together, through which pieces
    linear                  factorisations, facet responses
    basis                   the modes and responses that signals are expanded in; `eigenmodes`
                            chooses among dense, SLEPc and block solvers
    modal                   matrix formalism: signals, gradients, the whole Jacobian
    march                   time stepping: signals and gradients of any weak form
    shapes                  fast models of which mesh cells lie inside
"""


def silent(what: str, done: int, total: int) -> None:
    """Say nothing: what ``progress`` of an engine is until it is set.

    Called on every rank with a part of the work in words and its counts, those of the rank; total
    0 where it is not known. Never collective.
    """
