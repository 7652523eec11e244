# Every target makes its own virtual environment on first use; nothing has to be prepared.
#   make test PYTHON=python3.12 VENV=.venv312     another interpreter
#   make test ARGS="-k packing"                   tests with "packing" in their names

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
NOTEBOOKS ?= notebooks/*.py
FAST := tests/test_house.py tests/objectives/test_losses.py tests/objectives/test_negatives.py tests/objectives/test_objectives.py tests/evaluation/test_metrics.py tests/evaluation/test_catalogue.py tests/data/test_packing.py

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --quiet --disable-pip-version-check
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo test test-all check lint notebooks docs clean

help:
	@echo "make demo       train a recommender on synthetic data; curves in runs/demo"
	@echo "make test       run the tests; ARGS=\"-k packing\" or ARGS=tests/train runs some of them"
	@echo "make test-all   run them with the full grids of compilers and sizes"
	@echo "make check      lint, house rules and fast unit tests, in about a minute"
	@echo "make lint       run ruff"
	@echo "make notebooks  rebuild the notebooks from their scripts and execute them; NOTEBOOKS=notebooks/04*.py some of them"
	@echo "make docs       build the documentation in build/docs/html"
	@echo "make clean      remove the virtual environment and the caches (not runs/)"

demo: $(VENV)/.installed-plots
	@$(RUN) -m experiments.demo $(ARGS)

test: $(VENV)/.installed-test $(VENV)/.tried-compilers
	$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/.installed-test $(VENV)/.installed-docs $(VENV)/.tried-compilers
	$(RUN) -m pytest -n 2 --dist worksteal -m "" $(ARGS)

check: $(VENV)/.installed-test
	$(RUN) -m ruff check
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not exhaustive" --quiet $(FAST) $(ARGS)

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check $(ARGS)

notebooks: $(VENV)/.installed-notebooks
	$(RUN) -m jupytext --quiet --update --to ipynb $(wildcard $(NOTEBOOKS))
	JAX_PLATFORMS=cpu $(VENV)/bin/jupyter-execute --inplace $(patsubst %.py,%.ipynb,$(wildcard $(NOTEBOOKS)))

docs: $(VENV)/.installed-docs
	$(RUN) -m docs.build
	@echo "Open build/docs/html/index.html"

clean:
	rm -rf $(VENV) build/docs .cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/.installed-%: setup.py | $(VENV)/bin/python
	@echo "Installing jaxrec[$*] into $(VENV) (a minute or two the first time)"
	@$(PIP) --editable '.[$*]'
	@touch $@

# A gigabyte of compilers for TPUs and H100s; without them the tests that compile are skipped.
$(VENV)/.tried-compilers: $(VENV)/.installed-test
	@echo "Installing the compilers for TPUs and H100s into $(VENV)"
	@$(PIP) --editable '.[compilers]' || echo "They could not be installed: the tests that need them will be skipped."
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "jaxrec needs Python 3.11.5 or newer, and $(PYTHON) is %d.%d.%d: make PYTHON=python3.12" % sys.version_info[:3])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
