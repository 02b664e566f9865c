"""Validation: every independent reference case through both engines, as one table.

`spinverse validate` is the command; `validate` the same from Python. References live in
``reference_values.json`` (none of them from finite elements, see `references`); `FAMILIES` lists
what is run, `table` judges and saves it.
"""

from .families import FAMILIES, Family, choose_families, validate
from .rows import Row, TargetMissed, Verdict, verdicts
from .solve import Settings
from .table import markdown, print_table, write

__all__ = [
    "FAMILIES", "Family", "Row", "Settings", "TargetMissed", "Verdict", "choose_families",
    "markdown", "print_table", "validate", "verdicts", "write",
]
