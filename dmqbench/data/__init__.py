"""Calibration data: seeded noise and labels, and the bank of full-precision trajectories."""
