"""Training objectives: losses of a model and a batch, with their gradients."""
