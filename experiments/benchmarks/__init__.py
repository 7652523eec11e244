"""Benchmarks: each prints JSON lines that name the device and the versions of JAX and Python."""
