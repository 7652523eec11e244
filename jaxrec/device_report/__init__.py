"""What is right and how fast on the device at hand: checks of the kernels, times, and the report they make."""
