"""Derived quantities: what a tissue and its signals say without an inversion.

From signals: ADC and kurtosis (`fit_adc`), diffusion tensors (`fit_tensor`), spherical harmonics
(`fit_hardi`), apparent exchange rate (`fit_axr`). From a tissue and an acquisition: the
homogenised ADC (`hadc`), the effective tensor of the matrix formalism (`mf_adc`), the short-time
approximation (`short_time_approximation`), the Karger model (`karger`, `karger_pools`). Of a tissue
alone: compartments and residence times (`compartments_of`), exchange times (`exchange_times`), mass
balance (`mass_balance`).
"""

from .adc import ADCFit, fit_adc
from .axr import AXRFit, fit_axr
from .compartments import TissueCompartments, compartments_of, pools_of
from .effective import EffectiveDiffusion, FitWarning, ValidityWarning
from .exchange import MassBalance, exchange_times, mass_balance
from .hadc import hadc
from .hardi import HARDIFit, fit_hardi, spherical_harmonics
from .karger import KargerSignals, karger, karger_pools
from .mf_adc import mf_adc
from .short_time import short_time_approximation
from .tensors import TensorFit, fit_tensor, fractional_anisotropy

__all__ = [
    "ADCFit", "AXRFit", "EffectiveDiffusion", "FitWarning", "HARDIFit", "KargerSignals",
    "MassBalance", "TensorFit", "TissueCompartments", "ValidityWarning", "compartments_of",
    "exchange_times", "fit_adc", "fit_axr", "fit_hardi", "fit_tensor", "fractional_anisotropy",
    "hadc", "karger", "karger_pools", "mass_balance", "mf_adc", "pools_of",
    "short_time_approximation", "spherical_harmonics",
]
