"""Linen modules that hold parameters and call pure functions; each can be used without the rest."""
