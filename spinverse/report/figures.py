"""The figures of a run's folder as PNG, from its files: for papers, and after the run."""

from __future__ import annotations

from pathlib import Path

from ..errors import SpinverseError
from . import folder, plots, plots_cells
from .html_run import Run


def write_all(run: Run) -> list[Path]:
    """Write ``figures/*.png`` into the folder of a run; the paths. For one rank.

    Raises:
        SpinverseError: matplotlib is not installed.
    """
    made = []

    def write(name: str, function, *args, **kwargs) -> None:
        path = run.path / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        try:
            folder.replace(path, lambda temporary: function(temporary, *args, **kwargs))
        except ImportError as error:
            raise SpinverseError(f"figures: {error.name} is not installed "
                                 "(pip install 'spinverse[plot]')") from None
        made.append(path)

    if run.acquisition is not None:
        write("signals", plots.signals, run.acquisition, run.predicted, run.measured)
    if run.history is not None:
        write("losses", plots.losses, run.history)
    found = run.found
    if found is None:
        return made
    write("permeability", plots_cells.permeability, found,
          (run.summary.get("interface") or {}).get("cut_um_per_ms"))
    # what a reconstruction draws knows the evidence, which is in no file
    if not (run.path / "figures" / "interface.png").is_file():
        write("interface", plots.interface, found.points[found.triples], found.permeability,
              found.membrane, found.true if found.true.any() else None, found.bounds,
              determined=found.determined)
    if found.labels is not None:
        write("planes", plots_cells.planes, found)
    return made
