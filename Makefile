# Everything a user runs. `make help` lists it; the pipeline rules below are meant to be copied.

PYTHON  ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
IJEPA   := $(BIN)/ijepa
WORKERS ?= 2

# The pipeline: one data set (DATA, called NAME), one recipe, one label.
DATA    ?= scenes:train=20000,val=6000
NAME    ?= scenes
RECIPE  ?= scenes-mini
LABELS  ?= class
TRAIN   ?= train
TEST    ?= val
SHARDS  := shards/$(NAME)
RUN     := runs/$(NAME)

.DEFAULT_GOAL := help
.PHONY: help setup mini check fix test bench report shard pretrain features probes clean FORCE

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

setup: $(VENV)/.ready ## Make the environment in .venv (done by the others when needed).

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "ijepa needs Python 3.11 to 3.13: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

mini: ## Data, shards, pretraining, features, probes, report: CPU only, within 15 minutes.
	@$(MAKE) --no-print-directory report
	@echo "Open runs/scenes/report.html"

test: setup ## Run the tests (those that need no GPU and no network).
	$(BIN)/python -m pytest -m "not gpu and not slow and not download" -n 2

check: setup ## Format, lint, types, import contracts.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: setup ## Format, and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Time every hot path against a plain reference.
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean: ## Remove what the pipeline made for NAME; shards of other data sets stay.
	rm -rf $(SHARDS) $(SHARDS).* $(RUN) $(RUN).* runs/$(NAME).features runs/$(NAME).probes

# --- The pipeline. Each stage decides itself whether its output is fresh, so every rule always
# --- runs and answers `cached` when there is nothing to do. Copy them for your own experiments.

shard: setup
	$(IJEPA) shard '$(DATA)' $(SHARDS) --workers $(WORKERS)

pretrain: shard
	$(IJEPA) pretrain --recipe $(RECIPE) --data $(SHARDS) --out $(RUN)
