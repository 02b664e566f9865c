"""Linear algebra: factorisations, tied facets, responses of single facets."""
