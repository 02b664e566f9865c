"""Matrix formalism: all measurements from one eigenproblem (`matrix_formalism`).

Gradients by permeability and by coefficients of the weak form are in `matrix_formalism` and
`coefficients`, the whole Jacobian in `jacobian`; `mesh_error` estimates what the mesh leaves.
"""
