"""What was measured: waveforms, directions, tables of measurements, signals and their files."""

from .bids import read_bids, write_bids
from .camino import read_camino, write_camino
from .dipy import from_dipy, to_dipy
from .directions import fibonacci_directions
from .fsl import read_fsl, write_fsl
from .io import read_acquisition, read_signals, write_acquisition, write_signals
from .oscillating import CosOGSE, SinOGSE
from .pulseq import read_pulseq
from .pulses import PGSE, DoublePGSE, TrapezoidPGSE
from .samples import Sampled, SampledGradient
from .signals import Signals
from .stored import FEXI, StimulatedEcho
from .table import Acquisition
from .waveform import Waveform

__all__ = [
    "FEXI", "PGSE", "Acquisition", "CosOGSE", "DoublePGSE", "Sampled", "SampledGradient", "Signals",
    "SinOGSE", "StimulatedEcho", "TrapezoidPGSE", "Waveform", "fibonacci_directions", "from_dipy",
    "read_acquisition", "read_bids", "read_camino", "read_fsl", "read_pulseq", "read_signals",
    "to_dipy", "write_acquisition", "write_bids", "write_camino", "write_fsl", "write_signals",
]
