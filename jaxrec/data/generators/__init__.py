"""Simulated users with known behaviour, for tests and for questions that recorded data cannot answer."""
