"""Fast models of the search for shapes."""
