"""Measurements: each prints JSON lines with the device and the versions it ran on."""
