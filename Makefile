# Everyday commands. All that must be on the machine: make, and Python 3.11 or later with venv.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint clean

help: ## list these targets
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=$(PYTHON)  the interpreter that creates the environment'
	@echo '  VENV=$(VENV)  where the environment is'
	@echo '  ARGS=...  further arguments of demo (make demo ARGS="--seed 7") and of pytest in test'

demo: $(STAMP) ## run a fleet of agents on one shared store, and verify what it stored
	$(BIN)/python -m workers.fleet $(ARGS)

test: lint ## everything that must pass: ruff, mypy --strict on inmem, pytest
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP) ## ruff and mypy only
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean: ## remove .venv, caches and build products
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find inmem workers tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is younger than pyproject.toml exactly when what it lists is installed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("inmem needs Python 3.11 or later, not %d.%d: set PYTHON" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
