"""Layers of click-through models: decoupled embeddings, target attention, hashed search, batch normalisation."""
