"""Command-line programs; each module is one, with its flags."""
