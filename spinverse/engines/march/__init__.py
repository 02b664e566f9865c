"""Time stepping: any weak form, any waveform (`time_stepping`), with its discrete adjoint."""
