"""Linear algebra: factorisations, blocks of columns, tied facets, responses of single facets."""
