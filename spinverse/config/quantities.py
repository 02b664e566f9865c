"""The section quantities of a simulation: what is derived from its tissue and its signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import quantities
from .arguments import arguments_of, chosen

QUANTITIES: dict[str, Callable] = {
    "adc": quantities.fit_adc, "tensor": quantities.fit_tensor, "hardi": quantities.fit_hardi,
    "axr": quantities.fit_axr,
    "hadc": quantities.hadc, "mf_adc": quantities.mf_adc,
    "short_time": quantities.short_time_approximation, "karger": quantities.karger,
    "compartments": quantities.compartments_of, "exchange_times": quantities.exchange_times,
    "mass_balance": quantities.mass_balance}
FROM_SIGNALS = ("adc", "tensor", "hardi", "axr")
KNOW_EXTRA_TERMS = (*FROM_SIGNALS, "compartments")  # what is fitted, or is of the mesh alone
# what a run knows, or what is no number: no keys for them
_KNOWN = ("signals", "S", "tissue", "acquisition", "degree", "diffusivities", "exchange_rates")


def requests(value) -> dict[str, dict]:
    """A validator: names, or names with options, to ``{name: options as in the run file}``."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        value = [item if isinstance(item, Mapping) else {item: None} for item in value]
        names = [name for item in value for name in item]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} appears twice, expected it once")
        value = {name: options for item in value for name, options in item.items()}
    if not isinstance(value, Mapping):
        raise ValueError("expected a list of " + ", ".join(QUANTITIES))
    for name, options in value.items():
        chosen(name, QUANTITIES, "quantities")
        if not isinstance(options, Mapping | None):
            raise ValueError(f"expected {name} alone or with options, as {name}: {{key: value}}")
    found = {name: dict(options or {}) for name, options in value.items()}
    for name in found:
        options_of(found, name)
    return found


def options_of(found: Mapping[str, Mapping], name: str) -> dict:
    """The options of a requested quantity as arguments of its function."""
    return arguments_of(QUANTITIES[name], found[name], leave_out=_KNOWN, optional=("times",),
                        where=f"{name}.")
