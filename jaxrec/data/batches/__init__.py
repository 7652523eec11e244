"""From prepared data to batches: rows, packing, training and evaluation order, candidates."""
