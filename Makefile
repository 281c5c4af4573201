# Everything a user runs. `make help` lists it; the pipeline rules below are meant to be copied.
# Variables are changed on the command line only (make SEED=1 mini): some shells export a NAME.
# WORKERS are processes that read images; without a number, 2, and for a GPU all cores but 2.

PYTHON   =  python3
VENV     =  .venv
BIN      := $(VENV)/bin
IJEPA    := $(BIN)/ijepa
WORKERS  =

# The pipeline: one data set (DATA, called NAME), pretrained with one RECIPE, probed on LABELS.
# Yours: make DATA=/path/to/images report, which takes NAME from the last part of the path, the recipe
# from the size of the images, and as LABELS `class`, else every label that the images have. Images
# without labels get pictures and health checks in place of scores.
# Images that have no splits get one, val, of a tenth. Without a TEST, scores are of val, else of test,
# else of the only split beside TRAIN. Photographs are stored with a short side of RESIZE pixels.
DATA     =  scenes:train=10000,val=6000
NAME     =  scenes
RECIPE   =  scenes-mini
LABELS   =  class
PROBE    =  logistic linear knn few-shot
TRAIN    =  train
TEST     =
REPORT   =  runs/$(NAME).html
SEED     =  0

# An encoder to evaluate on DATA as it is, such as runs/cifar10; without one, DATA pretrains its own.
ENCODER  =
RESIZE   =

include reproduce/names.mk
ifeq ($(origin DATA),command line)
  RECIPE =  auto
  RESIZE =  $(if $(value ENCODER),,512)
  ifneq ($(origin NAME),command line)
    NAME := $(call name_of,$(value DATA))
  endif
endif
ifeq ($(call is_name,$(value NAME)),)
  $(error NAME=$(value NAME) is to be letters, digits, '-', '_' and '.', the first a letter or digit)
endif
$(call check_words,LABELS PROBE TRAIN TEST SEED WORKERS SCALE GPUS JOBS)
$(if $(findstring .,$(LABELS)),$(error LABELS=$(LABELS) is to be names without dots))

SHARDS   := shards/$(NAME)
RUN      := $(or $(value ENCODER),runs/$(NAME))
SCORED   := $(or $(TEST),evaluation)
FEATURES := runs/$(NAME).features
PROBES   := runs/$(NAME).probes
PICTURES := runs/$(NAME).pictures
RESULTS  := $(foreach probe,$(PROBE),$(foreach label,$(LABELS),$(PROBES)/$(probe).$(label).json))
ENCODERS := target random pixels
TOKENS   := $(if $(filter attentive,$(PROBE)),--tokens)

# What each name of ENCODERS is; `target` is the one that the others are baselines to.
ENCODER_target := $(RUN)
ENCODER_random := random:$(RUN)
ENCODER_pixels := pixels

.DEFAULT_GOAL := help
.PHONY: help setup tools mini check fix test test-slow bench docs report page shard pretrain extract probe clean \
  pictures evaluation low-level reproduce changed
.SECONDARY:
# Ctrl-C must not remove a record, by which ijepa knows an output as its own.
.PRECIOUS: $(foreach side,train test,$(FEATURES)/%.$(side).h5.stage.json \
  $(FEATURES)/low-level/%.$(side).h5.stage.json) $(PROBES)/%.json.stage.json $(PICTURES)/%.png.stage.json

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

setup: $(if $(DEV),tools,$(VENV)/.ready) ## Install into .venv (done by the others when needed); TORCH=cpu, DEV=1.

# On Linux for x86-64, torch of PyPI brings CUDA; a build without it is on PyTorch's own index.
TORCH    =
CPU_ONLY := https://download.pytorch.org/whl/cpu
PIP      := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	  || { echo "ijepa needs Python 3.11 to 3.14: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing ijepa and its libraries into $(VENV), in some minutes. On Linux for x86-64 they take 6 GB,"
	@echo "5 of them torch with CUDA, which make setup TORCH=cpu leaves out."
	@$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	@$(PIP) --index-url $(CPU_ONLY) torch torchvision || { echo "No build for a CPU at $(CPU_ONLY): \
	  run make setup without TORCH=cpu." >&2; exit 1; }
endif
	@$(PIP) --editable .
	@touch $@
	@echo "Ready: source $(VENV)/bin/activate, then ijepa --help; or make mini."

tools: $(VENV)/.dev

$(VENV)/.dev: $(VENV)/.ready
	@echo "Installing what developers need: pytest, ruff, mypy, mkdocs and every optional library."
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.decoder: $(VENV)/.ready
	@$(PIP) --editable '.[decoder]'
	@touch $@

mini: ## Data, shards, pretraining, features, probes, report: on a CPU, in about 13 minutes.
	@$(MAKE) --no-print-directory report LABELS="class count dist" PROBE=logistic REPORT=report.html

# Every table at one scale, see reproduce/graph.mk. `make -n reproduce` prints what would run.
SCALE  = mini
GPUS   = 1
JOBS   = $(if $(filter mini,$(SCALE)),2,1)

reproduce: $(VENV)/.decoder ## Every table of the paper at SCALE: mini, cifar10, imagenette or in1k.
	@$(MAKE) $(if $(filter -j% --jobs%,$(MAKEFLAGS)),,--jobs=$(JOBS)) --no-print-directory \
	  --file reproduce/graph.mk SCALE=$(SCALE) GPUS=$(GPUS) IJEPA=$(IJEPA) all

test: tools ## Run the tests (those that need no GPU and no network).
	$(BIN)/python -m pytest -m "not gpu and not slow and not download" -n 2

test-slow: tools ## Run the tests that take longest.
	$(BIN)/python -m pytest -m "slow and not gpu and not download" -n 2 --dist worksteal

check: tools ## Format, lint, types, import contracts, lines of each room within their budget.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/size.py --check

fix: tools ## Format, and mend what the linter can.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: tools ## Time every hot path against a plain reference.
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

docs: tools ## Build the documents into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean: ## Remove what stages made for NAME, and report.html; what has no record of theirs stays.
	@$(BIN)/python -m ijepa_cli.make clean shards/$(NAME) $(if $(value ENCODER),,runs/$(NAME)) \
	  runs/$(NAME).features/ runs/$(NAME).probes/ runs/$(NAME).pictures/ runs/$(NAME).html report.html
	@rm -f $(SETTINGS)

# --- The pipeline: one stage a rule, to be copied for experiments of your own. shard, pretrain and
# --- report are always asked, and answer `cached` if nothing has changed. Features and probes are
# --- asked if what they are made of is newer than their record, OUT.stage.json, which a stage touches
# --- when it answers; or if variables changed. `make -B` asks all.

SETTINGS := runs/$(NAME).settings
GIVEN    := $(foreach name,ENCODER TRAIN TEST SEED TOKENS,$(name)=$(value $(name)))
IS_SAME  := $(shell printf %s $(call quoted,$(GIVEN)) | cmp -s - $(SETTINGS) && \
  [ ! $(call quoted,$(value ENCODER)) -nt $(SETTINGS) ] && echo yes)
STORED   := $(foreach encoder,$(ENCODERS),$(encoder).train.h5.stage.json $(encoder).test.h5.stage.json)

$(SETTINGS): $(if $(IS_SAME),,changed)
	@mkdir -p runs && printf %s $(call quoted,$(GIVEN)) > $@

shard: setup ## DATA -> shards/NAME.
	@$(IJEPA) shard $(call quoted,$(value DATA)) $(SHARDS) --val-fraction 0.1 $(RESIZE:%=--resize %) \
	  $(WORKERS:%=--workers %) $(REQUIRED)

pretrain: shard ## shards/NAME -> runs/NAME, with RECIPE; nothing to do for an ENCODER.
ifeq ($(ENCODER),)
	@$(IJEPA) pretrain --recipe $(call quoted,$(value RECIPE)) --set seed=$(SEED) --data $(SHARDS) --out $(RUN) \
	  $(WORKERS:%=--workers %)
endif

# Files that are newer only if these two made something.
$(SHARDS)/index.json: shard ;
runs/$(NAME)/config.yaml: pretrain ;
MADE     := $(SETTINGS) $(SHARDS)/index.json $(if $(value ENCODER),,runs/$(NAME)/config.yaml)

extract: $(STORED:%=$(FEATURES)/%) ## runs/NAME -> runs/NAME.features, baselines too.

$(FEATURES)/%.train.h5.stage.json: $(MADE)
	@$(IJEPA) extract --encoder $(call quoted,$(ENCODER_$*)) --data $(SHARDS) --split $(TRAIN) \
	  --out $(@:.stage.json=) $(TOKENS) $(WORKERS:%=--workers %)

$(FEATURES)/%.test.h5.stage.json: $(MADE)
	@$(IJEPA) extract --encoder $(call quoted,$(ENCODER_$*)) --data $(SHARDS) --split $(SCORED) \
	  --out $(@:.stage.json=) $(TOKENS) $(WORKERS:%=--workers %)

# What a probe will need of the images is asked for before hours of pretraining. A report of images of
# yours needs no labels, unless LABELS are named.
IS_GIVEN := $(filter command line,$(origin LABELS))
NEEDS_IT := $(or $(IS_GIVEN),$(filter file,$(origin DATA)))
probe report: REQUIRED = $(TRAIN:%=--require-split %) $(SCORED:%=--require-split %)
probe: REQUIRED += $(LABELS:%=--require-label %)
report: REQUIRED += $(if $(NEEDS_IT),$(LABELS:%=--require-label %))

probe: $(RESULTS:%=%.stage.json) ## runs/NAME.features -> runs/NAME.probes, a file a PROBE and label of LABELS.

# Features of the first encoder in a folder, and those of the others as baselines.
compared = $(foreach part,train test,--$(part) $1/$(firstword $(ENCODERS)).$(part).h5) \
  $(foreach encoder,$(wordlist 2,9,$(ENCODERS)),$(foreach part,train test,\
    --baseline-$(part) $1/$(encoder).$(part).h5))

$(PROBES)/%.json.stage.json: $(SETTINGS) $(STORED:%=$(FEATURES)/%)
	@$(IJEPA) probe $(basename $*) --label $(subst .,,$(suffix $*)) --seed $(SEED) \
	  --out $(@:.stage.json=) $(call compared,$(FEATURES))

# A run's masks, what it and its random initialisation make of patches, and nearest neighbours by the
# features of both. Of an ENCODER, the last alone: it may be of another kind.
DRAWN    := $(if $(value ENCODER),,masks pca) neighbors

pictures: $(DRAWN:%=$(PICTURES)/%.png.stage.json) ## runs/NAME -> runs/NAME.pictures: masks, patches, neighbours.

$(PICTURES)/masks.png.stage.json: $(MADE)
	@$(IJEPA) visualize masks --recipe $(RUN)/config.yaml --data $(SHARDS) --out $(@:.stage.json=)

$(PICTURES)/pca.png.stage.json: $(MADE)
	@$(IJEPA) visualize pca --encoder $(RUN) --encoder random:$(RUN) --data $(SHARDS) --split $(SCORED) \
	  --out $(@:.stage.json=)

$(PICTURES)/neighbors.png.stage.json: $(SETTINGS) \
  $(foreach encoder,target random,$(FEATURES)/$(encoder).test.h5.stage.json)
	@$(IJEPA) visualize neighbors --features $(FEATURES)/target.test.h5 --features $(FEATURES)/random.test.h5 \
	  --data $(SHARDS) --out $(@:.stage.json=)

# Which LABELS there are is known when the shard set is made: make reads this file again then.
report: shard ## All of these -> REPORT, a page.
	@$(MAKE) --no-print-directory --old-file=shard page \
	  $(if $(NEEDS_IT),,LABELS="$$(test ! -x $(BIN)/python || \
	  $(BIN)/python -m ijepa_cli.make labels $(SHARDS) $(TRAIN) $(SCORED))")

page: probe pictures
	@$(if $(LABELS),,for of in target random; do $(IJEPA) features diagnose $(FEATURES)/$$of.test.h5 || exit 1; done)
	@$(IJEPA) report $(RESULTS) $(call quoted,$(RUN)) $(DRAWN:%=$(PICTURES)/%.png) \
	  --out $(call quoted,$(REPORT))

# --- One encoder on several data sets. SETS is a folder with cifar10.tar.gz and imagenette128.tar (class
# --- folders under train/ and test/ or val/) and clevr-mini.tar (CLEVR's layout).

EVALUATED := cifar10 imagenette clevr
EVALUATE_cifar10    := $(call quoted,DATA=cifar10:$(value SETS)/cifar10.tar.gz) TEST=test
EVALUATE_imagenette := $(call quoted,DATA=$(value SETS)/imagenette128.tar)
EVALUATE_clevr      := $(call quoted,DATA=clevr:$(value SETS)/clevr-mini.tar) LABELS="count dist"

evaluation: $(EVALUATED:%=evaluate-%) ## ENCODER on the data sets in SETS by every PROBE -> runs/evaluation.html.
	@$(MAKE) --no-print-directory low-level NAME=evaluation-clevr $(EVALUATE_clevr)
	@$(IJEPA) report $(foreach set,$(EVALUATED),$(foreach probe,$(PROBE),\
	  $(wildcard runs/evaluation-$(set).probes/$(probe).*.json))) \
	  runs/evaluation-clevr.probes/low-level/count.json \
	  runs/evaluation-clevr.probes/low-level/dist.json --out runs/evaluation.html

evaluate-%: setup
	@test -n $(call quoted,$(value ENCODER)) || { echo "make evaluation needs ENCODER, such as runs/cifar10" >&2; exit 1; }
	@test -d $(call quoted,$(value SETS)) || { echo "make evaluation needs SETS, a folder with the data sets" >&2; exit 1; }
	@$(MAKE) --no-print-directory probe NAME=evaluation-$* $(EVALUATE_$*)

# Its protocol squashes whole images and trains on views that are flipped or not; four are stored.
LOW_LEVEL := $(FEATURES)/low-level

low-level: $(STORED:%=$(LOW_LEVEL)/%) ## Count and distance of DATA by the paper's protocol.
	@$(IJEPA) probe low-level --seed $(SEED) --out $(PROBES)/low-level $(call compared,$(LOW_LEVEL))

$(LOW_LEVEL)/%.train.h5.stage.json: $(MADE)
	@$(IJEPA) extract --encoder $(call quoted,$(ENCODER_$*)) --data $(SHARDS) --split $(TRAIN) \
	  --out $(@:.stage.json=) --crop squash --augment flip --views 4 $(WORKERS:%=--workers %)

$(LOW_LEVEL)/%.test.h5.stage.json: $(MADE)
	@$(IJEPA) extract --encoder $(call quoted,$(ENCODER_$*)) --data $(SHARDS) --split $(SCORED) \
	  --out $(@:.stage.json=) --crop squash $(WORKERS:%=--workers %)
