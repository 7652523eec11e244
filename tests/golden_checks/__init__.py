"""Checks of our functions against golden files; `registry` says which check belongs to which file name."""
