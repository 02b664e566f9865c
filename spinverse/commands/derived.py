"""The quantities of a run file: computed, as plain values with units in the keys, and in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import quantities as q
from ..acquisition import Acquisition, Signals
from ..config.quantities import FROM_SIGNALS, QUANTITIES, options_of
from ..errors import InputError, SolverError, one_line
from ..problem import BlochTorrey
from ..units import b_to_internal, describe_range, rate_from_internal


@dataclass(frozen=True)
class Derived:
    """One quantity for quantities.json and for the screen; where it ``failed``, values say why."""

    values: dict
    lines: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    failed: bool = False


def check(requested: Mapping[str, Mapping], acquisition: Acquisition) -> None:
    """Refuse, with an InputError, quantities that the acquisition does not determine."""
    free = Signals(acquisition, np.exp(-b_to_internal(acquisition.b).clip(max=600.0)))
    for name in FROM_SIGNALS:
        if name in requested:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _named(name, QUANTITIES[name], free, **options_of(requested, name))


def of_tissue(requested: Mapping[str, Mapping], problem: BlochTorrey,
              acquisition: Acquisition) -> dict[str, Derived]:
    """What needs no signals, by name; InputError and SolverError name it. Collective."""
    made = {}
    for name in requested:
        if name in FROM_SIGNALS:
            continue
        options = options_of(requested, name)
        arguments: list = [problem]
        if name in ("hadc", "mf_adc", "short_time", "karger"):
            arguments.append(acquisition)
        if name == "mass_balance":
            longest = max(waveform.echo_time for waveform in acquisition.waveforms)
            options.setdefault("times", np.linspace(0.0, longest, 11))
        made[name] = _derived(name, acquisition, *arguments, **options)
    return made


def of_signals(requested: Mapping[str, Mapping], signals: Signals) -> dict[str, Derived]:
    """What is fitted to the signals, by name; where that fails, the error in its place."""
    made = {}
    for name in requested:
        if name not in FROM_SIGNALS:
            continue
        try:
            made[name] = _derived(name, signals.acquisition, signals,
                                  **options_of(requested, name))
        except InputError as error:  # the signals are worth keeping
            made[name] = Derived({"error": str(error)}, (), (str(error),), failed=True)
    return made


def _named(name: str, function: Callable, *args, **options):
    try:
        return function(*args, **options)
    except (InputError, SolverError) as error:
        raise type(error)(f"{name}: {error}") from None


def _derived(name: str, table: Acquisition, *args, **options) -> Derived:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        value = _named(name, QUANTITIES[name], *args, **options)
    values, lines = _DESCRIBED[name](value, table)
    return Derived(values, tuple(f"{name}: {line}" for line in lines),
                   tuple(dict.fromkeys(one_line(item.message) for item in caught)))


def _adc(fit: q.ADCFit, table: Acquisition) -> tuple[dict, list[str]]:
    fits = [{"sequence": table.waveforms[fit.waveform_index[k]].describe(),
             "direction": fit.directions[k], "adc_um2_per_ms": fit.adc[k],
             "adc_error_um2_per_ms": fit.adc_error[k], "kurtosis": fit.kurtosis[k],
             "S0": fit.S0[k], "residual_of_ln_S": fit.residual[k],
             "b_range_s_per_mm2": fit.b_range[k], "valid": fit.valid[k]}
            for k in range(len(fit))]
    lines = []
    for w in np.unique(fit.waveform_index):
        rows = fit.waveform_index == w
        axes = f" ({rows.sum()} axes)" if rows.sum() > 1 else ""
        lines.append(f"{table.waveforms[w].describe()}: ADC {describe_range(fit.adc[rows])} "
                     f"um^2/ms, kurtosis {describe_range(fit.kurtosis[rows])}{axes}")
    return {"fits": fits}, lines


def _tensor(fit: q.TensorFit, table: Acquisition) -> tuple[dict, list[str]]:
    fits, lines = [], []
    for k, w in enumerate(fit.waveform_index):
        name = table.waveforms[w].describe() if w >= 0 else "waveforms of varying direction"
        mean, anisotropy = fit.mean_diffusivity[k], fit.fractional_anisotropy[k]
        fits.append({"sequence": name, "tensor_um2_per_ms": fit.tensors[k],
                     "eigenvalues_um2_per_ms": fit.eigenvalues[k],
                     "eigenvectors_in_columns": fit.eigenvectors[k],
                     "mean_diffusivity_um2_per_ms": mean, "fractional_anisotropy": anisotropy,
                     "S0": fit.S0[k], "residual_of_ln_S": fit.residual[k]})
        lines.append(f"{name}: MD {mean:.4g} um^2/ms, FA {anisotropy:.3g}")
    return {"fits": fits}, lines


def _hardi(fit: q.HARDIFit, table: Acquisition) -> tuple[dict, list[str]]:
    unit = "um^2/ms" if fit.quantity == "adc" else "of the signal at b = 0"
    shells, lines = [], []
    for k, w in enumerate(fit.waveform_index):
        name = table.waveforms[w].describe()
        shells.append({"sequence": name, "b_s_per_mm2": fit.b[k], "mean": fit.mean[k],
                       "coefficients": fit.coefficients[k], "residual": fit.residual[k]})
        lines.append(f"{name}, b {fit.b[k]:g} s/mm^2: mean {fit.mean[k]:.4g} {unit}")
    return {"quantity": fit.quantity, "unit": unit, "order": fit.order,
            "shells": shells}, lines


def _axr(fit: q.AXRFit, table: Acquisition) -> tuple[dict, list[str]]:
    fits = [{"filter_b_s_per_mm2": fit.filter_b[k], "direction": fit.directions[k],
             "axr_per_ms": fit.axr[k], "axr_per_s": rate_from_internal(fit.axr[k]),
             "axr_error_per_ms": fit.axr_error[k], "sigma": fit.sigma[k],
             "adc_equilibrium_um2_per_ms": fit.adc_equilibrium[k],
             "residual_um2_per_ms": fit.residual[k], "mixing_times_ms": fit.mixing_times[k],
             "adc_um2_per_ms": fit.adc[k], "valid": fit.valid[k]} for k in range(len(fit))]
    lines = []
    for b in np.unique(fit.filter_b):
        rows = fit.filter_b == b
        axes = f" ({rows.sum()} axes)" if rows.sum() > 1 else ""
        lines.append(f"filter b {b:g} s/mm^2: AXR "
                     f"{describe_range(rate_from_internal(fit.axr[rows]))} 1/s, efficiency "
                     f"{describe_range(fit.sigma[rows])}{axes}")
    return {"fits": fits}, lines


def _effective(kind: str):
    def describe(found: q.EffectiveDiffusion, table: Acquisition):
        parts = found.compartments
        sequences, lines = [], []
        for w, waveform in enumerate(table.waveforms):
            rows = table.waveform_index == w
            sequences.append({
                "sequence": waveform.describe(), "tensor_um2_per_ms": found.tensor[w],
                "compartments": [
                    {"cell_tag": parts.cell_tags[c], "share_of_signal": found.weights[c, w],
                     "tensor_um2_per_ms": found.tensors[c, w],
                     "error_um2_per_ms": found.errors[c, w]} for c in range(len(parts))]})
            lines.append(f"{waveform.describe()}: slope at b = 0 {describe_range(found.adc[rows])} "
                         f"um^2/ms, {kind} {found.errors[:, w].max():.1g}")
        return {"adc_um2_per_ms": found.adc, "sequences": sequences}, lines
    return describe


def _karger(found: q.KargerSignals, table):
    try:
        normalised = found.signals.normalised
    except InputError:
        normalised = None
    values = {"signals_um3": found.signals.values.real, "normalised": normalised,
              "diffusivities_of_compartments_um2_per_ms": found.diffusivities,
              "exchange_rates_per_ms": found.exchange_rates,
              "residence_times_ms": found.residence_times}
    smallest = "" if normalised is None else f", smallest S/S0 {normalised.min():.4g}"
    return values, [f"{len(found.residence_times)} compartments, residence times "
                    f"{describe_range(found.residence_times)} ms{smallest}"]


def _compartments(parts: q.TissueCompartments, table):
    number = [{"cell_tag": parts.cell_tags[c], "volume_um3": parts.volumes[c],
               "surface_to_volume_per_um": parts.surface_to_volume[c],
               "outer_area_um2": parts.outer_areas[c],
               "residence_time_ms": parts.residence_times[c]} for c in range(len(parts))]
    return {"compartments": number, "interface_areas_um2": parts.interface_areas,
            "exchange_rates_per_ms": parts.exchange_rates}, [
        f"{len(parts)}, volumes {describe_range(parts.volumes)} um^3, S/V "
        f"{describe_range(parts.surface_to_volume)} 1/um, residence times "
        f"{describe_range(parts.residence_times)} ms"]


def _exchange_times(times: np.ndarray, table):
    words = f"{describe_range(times)} ms" if len(times) else "none, nothing is exchanged"
    return {"exchange_times_ms": times}, [words]


def _mass_balance(found: q.MassBalance, table):
    values = {"times_ms": found.times, "total_um3": found.total,
              "by_compartment_um3": found.by_compartment,
              "cell_tags": found.compartments.cell_tags}
    begin, end = (", ".join(f"{v:.4g}" for v in row[:6]) + ", ..." * (len(row) > 6)
                  for row in found.by_compartment[[0, -1]])
    return values, [f"in the compartments {begin} (in all {found.total[0]:.6g}) at "
                    f"{found.times[0]:g} ms, {end} (in all {found.total[-1]:.6g}) at "
                    f"{found.times[-1]:g} ms"]


_DESCRIBED: dict[str, Callable] = {
    "adc": _adc, "tensor": _tensor, "hardi": _hardi, "axr": _axr,
    "hadc": _effective("error of the time steps about"),
    "mf_adc": _effective("error of the modes at most"),
    "short_time": _effective("the next term about"),
    "karger": _karger, "compartments": _compartments, "exchange_times": _exchange_times,
    "mass_balance": _mass_balance}
