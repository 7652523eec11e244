"""Command-line programs, one per module with its flags, and the helpers that they share."""
