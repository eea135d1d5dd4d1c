# `make demo` and `make test` need nothing but this folder, python3 (3.11 or newer, with venv) and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.c2m3-set-up
# One process a core, one torch thread a process: threads of several processes that wait for each other cost minutes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
# Flower reports usage and looks for updates unless told not to; neither belongs into a test or a demonstration.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-flower lint docs

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP)  ## virtual environment .venv, dependencies, the package (once; again when they change)

demo: $(STAMP)  ## five clients from five initialisations, merged by FedAvg and by C2M3 (results/demo.*)
	$(BIN)/python -m simulations demo

test: $(STAMP)  ## the tests
	$(PYTEST)

test-all: $(STAMP)  ## the tests with the slow ones
	$(PYTEST) -m "slow or not slow"

FLOWER ?= 1.28.0
test-flower: $(STAMP)  ## the strategy's tests with another release of Flower: make test-flower FLOWER=1.28.0
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/flower-$(FLOWER) 'flwr==$(FLOWER)'
	PYTHONPATH=$(VENV)/flower-$(FLOWER) $(PYTEST) tests/federation

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.c2m3-docs  ## this site's pages (docs/_build/html); warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

$(VENV)/.c2m3-docs: $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one by: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[simulation,dev]'
	@touch $@
