"""Waveforms on their way in and out."""
