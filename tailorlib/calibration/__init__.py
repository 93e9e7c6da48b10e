"""Calibration: what is gathered over text from a full-depth model, and what is solved from it."""
