"""Inference with trained models: recommendations, event-by-event queries, search of long histories."""
