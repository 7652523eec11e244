"""Prepared data -> batches: rows, packing, training and evaluation batches, candidates for click-through prediction."""
