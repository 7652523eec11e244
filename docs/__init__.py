"""The documentation: its pages, and the programs that put them together; `make docs` builds the site."""
