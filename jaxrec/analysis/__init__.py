"""What trained models do, as numbers and pictures."""
