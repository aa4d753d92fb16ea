# Everyday commands. All that must be on the machine: make, and Python 3.11 or later with venv.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo chaos test lint compiled clean

help: ## list these targets
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done
	@echo
	@echo '  PYTHON=$(PYTHON)  the interpreter that creates the environment'
	@echo '  VENV=$(VENV)  where the environment is'
	@echo '  ARGS=...  further arguments of demo and chaos (make demo ARGS="--seed 7") and of pytest in test'

demo: compiled ## run a fleet of agents on one shared store, and verify what it stored
	$(BIN)/python -m workers.fleet $(ARGS)

chaos: compiled ## ten minutes of work while writer and workers are killed, stopped and starved; then look for losses
	$(BIN)/python -m workers.chaos --minutes 10 $(ARGS)

test: lint compiled ## everything that must pass: ruff, mypy --strict, pytest
	@# Three at once on two cores: a third of the time of the tests is waiting, and four were not faster.
	@# A short place for temporary files: the path of a Unix socket has 107 characters at most.
	place=$$(mktemp -d /tmp/it-XXXXXX) && trap "rm -rf $$place" EXIT && \
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --basetemp=$$place/p $(ARGS)

lint: $(STAMP) ## ruff and mypy only
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

# As installing a package does, and whatever PYTHONDONTWRITEBYTECODE says: a writer that is started anew while others wait
# for it would spend most of the time on compiling what it imports.
compiled: $(STAMP)
	@$(BIN)/python -m compileall -q inmem workers bench

# The peers are for measuring only, so they are installed when that is asked for.
.PHONY: bench bench-quick
BENCH_STAMP := $(VENV)/.bench

bench: $(BENCH_STAMP) compiled ## measure everything beside its peers and probes, into build/bench: takes an hour and a half
	$(BIN)/python -m bench $(ARGS)

bench-quick: $(BENCH_STAMP) compiled ## the same with few short rounds, into build/bench: does it all work?
	$(BIN)/python -m bench --quick $(ARGS)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

# As above. The pages open without a server, and can be searched without one.
# The variable silences a notice about the theme's own future, which is printed at every build.
.PHONY: docs
DOCS_STAMP := $(VENV)/.docs

docs: $(DOCS_STAMP) ## these documents and the API reference as a site, into build/site: open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

# Built from what is in the checkout, in directories of their own: nothing that an earlier build has left gets in.
.PHONY: dist
DIST_STAMP := $(VENV)/.dist

dist: $(DIST_STAMP) ## sdist and wheel, built and checked, into dist
	rm -rf dist build/lib inmem.egg-info/SOURCES.txt
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/helpers/distributions.py dist

$(DIST_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[release]'
	@touch $@

clean: ## remove .venv, caches and build products
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find inmem workers tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is younger than pyproject.toml exactly when what it lists is installed.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("inmem needs Python 3.11 or later, not %d.%d: set PYTHON" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
