"""Measuring speed and memory: rows, sweeps, claims and their pictures, from notebook 04 on."""
