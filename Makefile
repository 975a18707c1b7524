# Everything runs in a virtual environment of its own; Python 3.11 or 3.12, pip and make are all
# that is assumed. PIP_ARGS adds to every pip call, such as the CPU builds of torch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint deploy/constraints.txt $(PIP_ARGS)
# Dagster reads asset selections with a grammar made for antlr 4.13, while terratorch's dependency
# lightly asks (through omegaconf, for its own command line only) for 4.9, which cannot read it.
ANTLR := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	'antlr4-python3-runtime==4.13.2'
# GEOStudio's own client, which drives our API in tests. It asks for exact versions of packages (for
# its notebook widgets, mostly) that ours exclude; its client itself needs none of those.
SDK := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	$(PIP_ARGS) 'geostudio==0.1.5'
INPUTS := pyproject.toml deploy/constraints.txt
# Tests on two cores, by modules: what the fixtures of one start is started once. (By marks of
# groups would do, too, but pytest-xdist 3.8 loses them with pytest 9.2.)
SHARED_OUT := -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo dev test test-fast lint types format bench bench-api clean help

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), "Python 3.11 or 3.12 is needed; set PYTHON=..."'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(INPUTS) | $(BIN)/python
	@echo "Installing (once; a few minutes) ..."
	$(PIP) --editable '.[demo]'
	$(ANTLR)
	$(BIN)/python -m geostudio_dagster.models.torchvision_ops --install
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(BIN)/python
	@echo "Installing (once; a few minutes) ..."
	$(PIP) --editable '.[dev]'
	$(ANTLR)
	$(SDK)
	$(BIN)/python -m geostudio_dagster.models.torchvision_ops --install
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## install, register a model, predict on real imagery, show the map [INPUT=scene.tif MODEL=bundle]
	@$(BIN)/geostudio-dagster demo $(if $(INPUT),--input '$(INPUT)') $(if $(MODEL),--model '$(MODEL)')

dev: $(VENV)/.demo  ## webserver, daemon and gateway together until Ctrl-C
	@$(BIN)/geostudio-dagster dev

test: $(VENV)/.dev  ## install and run all tests
	$(BIN)/python -m pytest $(SHARED_OUT)

test-fast: $(VENV)/.dev  ## the tests that start no processes
	$(BIN)/python -m pytest $(SHARED_OUT) -m 'not live'

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## speed and memory, as ratios measured side by side
	$(BIN)/python -m bench

bench-api: $(VENV)/.dev  ## the API under load: 200 clients, on SQLite and PostgreSQL (needs wrk)
	$(BIN)/python -m bench.api

clean:  ## remove the environment and all data of the demo
	rm -rf $(VENV) .geostudio
