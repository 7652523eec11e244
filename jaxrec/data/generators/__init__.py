"""Synthetic data sets whose true structure is known."""
