"""What was measured: waveforms, directions, tables of measurements, signals and their files."""

from spinverse.acquisition.directions import fibonacci_directions
from spinverse.acquisition.io import (
    read_acquisition,
    read_signals,
    write_acquisition,
    write_signals,
)
from spinverse.acquisition.signals import Signals
from spinverse.acquisition.table import Acquisition
from spinverse.acquisition.waveforms import PGSE, Sampled, Waveform

__all__ = [
    "PGSE",
    "Acquisition",
    "Sampled",
    "Signals",
    "Waveform",
    "fibonacci_directions",
    "read_acquisition",
    "read_signals",
    "write_acquisition",
    "write_signals",
]
