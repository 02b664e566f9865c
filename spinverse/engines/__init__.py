"""The two forward engines, and the fast models of the shape search.

Imports go up in this list, never down:

    derivatives, progress   derivatives of the weak form by its coefficients; how far a solve is
    schedule                which measurements are propagated together, through which pieces
    linear                  factorisations, tied facets, facet responses
    basis                   the modes and responses that signals are expanded in; `eigenmodes`
                            chooses among dense, SLEPc and block solvers
    modal                   matrix formalism: signals, gradients, the whole Jacobian
    march                   time stepping: signals and gradients of any weak form
    shapes                  fast models of which mesh cells lie inside
"""
