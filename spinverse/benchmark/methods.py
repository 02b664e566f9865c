"""What is compared: presets by name, or YAML files with stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import ReconstructConfig
from ..config.reading import checked, yaml_of
from ..errors import InputError
from ..inversion import Shapes
from ..inversion.stages import PRESETS
from .targets import check_names

#: Keys of a run file that the benchmark writes itself.
TAKEN = ("mesh", "signals", "acquisition")
#: The published rule for its interface: below 1e-3 m/s.
PUBLISHED = {"rule": "threshold", "cut_um_per_ms": 1.0}


@dataclass(frozen=True)
class Method:
    """A way to reconstruct: ``stages`` of a run file, and whatever other keys it says."""

    name: str
    keys: dict

    def run_file(self, mesh: str, signals: str, tissue: dict, normalisation: str = "measured",
                 seed: int = 0, unknown: Sequence[str] = ()) -> dict:
        """The run file with paths as they should stand in it; ``seed`` is added to searches'."""
        keys = self.keys | ({"stages": _seeded(self.keys["stages"], seed)} if seed else {})
        return {"mesh": {"file": mesh},
                "signals": {"file": signals, "normalisation": normalisation},
                **keys, "tissue": {**tissue, **keys.get("tissue", {})},
                **({"unknown": list(unknown)} if unknown else {})}


def _seeded(stages: str | list, seed: int) -> str | list:
    """The same stages with other random numbers; a preset without any keeps its name."""
    if isinstance(stages, str):
        made = PRESETS[stages]()
        if not all(isinstance(stage, Shapes) for stage in made):
            return stages
        stages = [{"name": stage.name, "shapes": {
            key: value for key, value in asdict(stage).items()
            if key not in ("name", "schedule")}} for stage in made]
    return [{**stage, "shapes": {**(stage["shapes"] or {}),
                                 "seed": (stage["shapes"] or {}).get("seed", 0) + seed}}
            if "shapes" in stage else stage for stage in stages]


def find(words: Sequence[str]) -> list[Method]:
    """The methods that words stand for, checked; or the InputError of one that is none.

    Words are names of presets, or YAML files that hold a list of stages, or a mapping of
    ``stages`` and other keys of a run file (``interface``, ``tissue`` without its boundary, ...).
    """
    found = [_one(word) for word in words]
    check_names("method", found)
    for method, word in zip(found, words, strict=True):
        data = method.run_file("grid.npz", "signals.npz", {"boundary": "reflecting"})
        checked(ReconstructConfig, data, Path("."), f"method {word}")
    return found


def _one(word: str) -> Method:
    path = Path(word).expanduser()
    if word in PRESETS:
        return Method(word, {"stages": word} | (
            {"interface": dict(PUBLISHED)} if word == "published" else {}))
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"method {word!r}: expected {', '.join(PRESETS)}, or a .yaml file with "
                         "a list of stages")
    if not path.is_file():
        raise InputError(f"method {word}: no such file, expected a list of stages (YAML)")
    content = yaml_of(path, f"method {word}")
    keys = {"stages": content} if isinstance(content, list | str) else content
    if not isinstance(keys, Mapping) or "stages" not in keys:
        raise InputError(f"method {word}: expected a list of stages, or a mapping with stages")
    for key in TAKEN:
        if key in keys:
            raise InputError(f"method {word}: {key}: the benchmark says it, expected stages and "
                             "what a run file may have beside them")
    tissue: Any = keys.get("tissue", {})
    if not isinstance(tissue, Mapping) or "boundary" in tissue:
        raise InputError(f"method {word}: tissue: {tissue!r:.60}, expected keys without boundary, "
                         "which the benchmark says")
    return Method(path.stem, dict(keys))
