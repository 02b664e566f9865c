"""What was measured: waveforms, directions, tables of measurements, signals and their files."""

from spinverse.acquisition.bids import read_bids, write_bids
from spinverse.acquisition.camino import read_camino, write_camino
from spinverse.acquisition.dipy import from_dipy, to_dipy
from spinverse.acquisition.directions import fibonacci_directions
from spinverse.acquisition.fsl import read_fsl, write_fsl
from spinverse.acquisition.io import (
    read_acquisition,
    read_signals,
    write_acquisition,
    write_signals,
)
from spinverse.acquisition.oscillating import CosOGSE, SinOGSE
from spinverse.acquisition.pulses import PGSE, DoublePGSE, TrapezoidPGSE
from spinverse.acquisition.samples import Sampled, SampledGradient
from spinverse.acquisition.signals import Signals
from spinverse.acquisition.table import Acquisition
from spinverse.acquisition.waveform import Waveform

__all__ = [
    "PGSE", "Acquisition", "CosOGSE", "DoublePGSE", "Sampled", "SampledGradient", "Signals",
    "SinOGSE", "TrapezoidPGSE", "Waveform", "fibonacci_directions", "from_dipy",
    "read_acquisition", "read_bids", "read_camino", "read_fsl", "read_signals", "to_dipy",
    "write_acquisition", "write_bids", "write_camino", "write_fsl", "write_signals",
]
