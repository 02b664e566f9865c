"""Which measurements are propagated together, and through which pieces of their waveforms."""
