"""All gradient waveforms in one place; each kind has its own module."""

from spinverse.acquisition.oscillating import CosOGSE, SinOGSE
from spinverse.acquisition.pulses import PGSE, DoublePGSE, TrapezoidPGSE
from spinverse.acquisition.samples import Sampled, SampledGradient
from spinverse.acquisition.waveform import REFOCUSING_TOLERANCE, Waveform

__all__ = [
    "PGSE",
    "REFOCUSING_TOLERANCE",
    "CosOGSE",
    "DoublePGSE",
    "Sampled",
    "SampledGradient",
    "SinOGSE",
    "TrapezoidPGSE",
    "Waveform",
]
