# The graph behind `make reproduce SCALE=...`: pattern rules from data sets to the page. Each rule is
# one stage, and its target is the stage's record: `stage.json` in a folder, `F.stage.json` beside a
# file F. A stage that finds its output up to date touches the record, so make asks it only once.
# `make -n` prints what would run; `make -B` asks every stage again, as after an upgrade of ijepa.
#
# A scale, reproduce/SCALE.mk, is data:
#   DATASETS        data sets, the first is pretrained on: SOURCE_set (empty: not at hand), SHARD_set
#                   and EXTRACT_set options, VIEWS_set those of training features alone, TEST_set
#                   the split to score on, if not val
#   RUNS            pretrainings: reproduce/SCALE/RUN.yaml, or the package's recipe of that name;
#                   ON_run its data set, if not the first; PRETRAIN, PRETRAIN_run options
#   MAIN            the run that is drawn, and that random initialisation is taken of
#   TABLEn          what a table of the paper needs: set/encoder/probe.label, and tuned/set/encoder
#   BASELINES_run   encoders shown beside it: random (untrained MAIN), pixels
#   PROBE_set.probe.label, the same with .encoder, TUNE, TUNE_encoder, DECODER   options
# ENCODERS is a folder of weights of others, named KIND-anything (mae-vit_large.pth); ONE_PERCENT a
# published list of 1% of the training images; GPUS are those of this machine that a stage may take.

SCALE    =  mini
TABLES   =  1 2 3 4 5 6 7
OUT      := runs/$(SCALE)
IJEPA    =  .venv/bin/ijepa
WORKERS  =
SEED     =  0
GPUS     =  1
ENCODERS :=
ONE_PERCENT :=
SCALES   := mini cifar10 imagenette in1k

include reproduce/names.mk
ifneq ($(words $(SCALE)) $(filter $(SCALE),$(SCALES)),1 $(SCALE))
  $(error SCALE=$(SCALE) is not known; there are $(SCALES))
endif
$(call check_words,SEED WORKERS GPUS)
$(if $(wildcard $(OUT)/stage.json),$(error $(OUT) holds a run of another command; move it elsewhere))

# Data and weights are named on the command line: shells export names such as MORE.
DATA    := CIFAR10 CIFAR100 IMAGENETTE CLEVR MORE IN1K IN22K PLACES205 INAT18
$(foreach name,$(DATA) ENCODERS ONE_PERCENT,$(if $(filter environment,$(origin $(name))),\
  $(eval $(name) :=)))
$(foreach name,$(DATA) ENCODERS ONE_PERCENT,$(if $(word 2,$($(name))),\
  $(error $(name)=$($(name)) has a space; make cannot take such a path, use a link)))

WEIGHTS := %.pth %.pt %.tar %.bin %.ckpt %.npz %.safetensors
FILES   := $(filter $(WEIGHTS),$(notdir $(wildcard $(ENCODERS:%=%/*))))
FOREIGN := $(basename $(FILES))
$(if $(call is_name,x$(subst $(space),,$(FILES))),,$(error ENCODERS=$(ENCODERS) has a file whose name \
  is not letters, digits, '-', '_' and '.': rename it; there are $(FILES)))
RESNETS := byol-% simclrv2-%
ifneq ($(words $(FOREIGN)),$(words $(sort $(FOREIGN))))
  $(error ENCODERS=$(ENCODERS) has two files of one name: $(FILES))
endif
ifneq ($(ENCODERS),)
  ifeq ($(FILES),)
    $(error ENCODERS=$(ENCODERS) has no weights, named KIND-anything and ending in one of $(subst %,,$(WEIGHTS)))
  endif
endif
include reproduce/$(SCALE).mk

HOME     := $(firstword $(DATASETS))
on        = $(or $(ON_$1),$(HOME))

# Only what has its data; pictures are of the main run.
AT_HAND  := $(foreach set,$(DATASETS),$(if $(SOURCE_$(set)),$(set)))
part      = $(word $1,$(subst /, ,$2))
at_hand   = $(foreach score,$1,$(if $(call trainable,$(call part,2,$(score:tuned/%=%))),$(score)))
trainable = $(if $(filter $1,$(RUNS)),$(filter $(call on,$1),$(AT_HAND)),$1)
$(foreach table,$(TABLES),$(if $(TABLE$(table)),,\
  $(error SCALE=$(SCALE) has no table $(table), see reproduce/$(SCALE).mk)))
WANTED   := $(sort $(foreach table,$(TABLES),$(TABLE$(table))))
SCORES   := $(call at_hand,$(foreach set,$(AT_HAND),$(filter $(set)/%,$(WANTED))))
TUNED    := $(call at_hand,$(foreach set,$(AT_HAND),$(filter-out $(RESNETS:%=tuned/$(set)/%),\
  $(filter tuned/$(set)/%,$(WANTED)))))
SCORED   := $(foreach score,$(SCORES) $(TUNED:tuned/%=%),$(call part,2,$(score)))
TRAINED  := $(filter $(SCORED),$(RUNS))
ENCODER_random := random:$(OUT)/runs/$(MAIN)
ENCODER_pixels := pixels

test      = $(or $(TEST_$1),val)
weights   = $(foreach file,$(FILES),$(if $(filter $1,$(basename $(file))),$(ENCODERS)/$(file)))
foreign   = $(firstword $(subst -, ,$1)):$(strip $(call weights,$1))
encoder   = $(or $(ENCODER_$1),$(if $(filter $1,$(FOREIGN)),$(call foreign,$1),$(OUT)/runs/$1))
run_of    = $(if $(filter random,$1),$(OUT)/runs/$(MAIN),$(if $(filter $1,$(RUNS)),$(OUT)/runs/$1))
recipe    = $(or $(wildcard reproduce/$(SCALE)/$1.yaml),$1)
named     = $(call part,2,$1) $(BASELINES_$(call part,2,$1))
features  = $(foreach encoder,$(call named,$1),$(foreach side,train test,\
  $(OUT)/features/$(call part,1,$1)/$(encoder).$(side).h5))
protocol  = $(or $(PROBE_$1.$2),$(PROBE_$1))
stored    = $(OUT)/features/$(call part,1,$1)/$2.$3.h5
trainer   = $(if $(filter-out 1,$(GPUS)),$(dir $(IJEPA))torchrun --nproc-per-node $(GPUS) -m ijepa_cli,$(IJEPA))

# The recipe of a run and the recipes it is based on; the record of a folder, and of a run or nothing.
bases     = $1 $(foreach base,$(shell sed -n 's/^base: *//p' $1),$(call bases,$(if $(filter %.yaml,\
  $(base)),$(dir $1)$(base),ijepa/recipes/$(base).yaml)))
recipes   = $(call bases,$(if $(filter %.yaml,$(call recipe,$1)),$(call recipe,$1),\
  $(wildcard ijepa/recipes/$1.yaml)))
shards    = $(OUT)/shards/$1/stage.json
run       = $(addsuffix /stage.json,$(call run_of,$1)) $(call weights,$1)

# What else a stage depends on: the scale's data, and variables given on the command line.
SETTINGS := $(OUT)/settings
ASIDE    := SCALE TABLES WORKERS GPUS JOBS IJEPA PYTHON VENV TORCH DEV
GIVEN    := $(foreach name,$(sort $(filter-out $(ASIDE),$(.VARIABLES))),\
  $(if $(findstring command,$(origin $(name))),$(name)=$(value $(name))))
is_same   = $(shell printf %s $(call quoted,$1) | cmp -s - $2 && echo yes)

.PHONY: all changed
.SECONDARY:
.SECONDEXPANSION:
# Ctrl-C must not remove a record, by which ijepa knows an output as its own.
.PRECIOUS: $(foreach place,shards/%/ runs/%/ features/%.train.h5. features/%.test.h5. probes/%.json. \
  tuned/%/ table%.html.,$(OUT)/$(place)stage.json)

PICTURES := $(if $(filter $(MAIN),$(TRAINED)),$(addprefix $(OUT)/pictures/,masks.png attention.png \
  pca.png retrieval.png neighbors.png embedding.html embedding-random.html $(if $(DECODER),predictions.png)))
made      = $(OUT)/$(if $(filter tuned/%,$1),$1,probes/$1.json)
record    = $(OUT)/$(if $(filter tuned/%,$1),$1/stage.json,probes/$1.json.stage.json)
tabled    = $(filter $(SCORES) $(TUNED),$(TABLE$1))
PAGES    := $(foreach table,$(TABLES),$(if $(call tabled,$(table)),$(OUT)/table$(table).html))
REPORT   := $(OUT)/report.html

# And the pages: on what they show, which TABLES choose.
SOURCES  := $(OUT)/sources
SHOW     := $(SCORES) $(TUNED) $(TRAINED) $(PICTURES)

all: $(if $(SCORES)$(TUNED),$(REPORT:%=%.stage.json) $(PAGES:%=%.stage.json),\
  $(error nothing to do: SCALE=$(SCALE) needs data, see reproduce/$(SCALE).mk))

$(SOURCES): $(if $(call is_same,$(SHOW),$(SOURCES)),,changed)
	@mkdir -p $(OUT) && printf %s $(call quoted,$(SHOW)) > $@

$(SETTINGS): $(if $(call is_same,$(GIVEN),$(SETTINGS)),,changed) $(wildcard reproduce/$(SCALE).mk reproduce/one-gpu.mk)
	@mkdir -p $(OUT) && printf %s $(call quoted,$(GIVEN)) > $@

$(REPORT).stage.json: $(SOURCES) $(foreach score,$(SCORES) $(TUNED),$(call record,$(score))) \
  $(TRAINED:%=$(OUT)/runs/%/stage.json) $(PICTURES:%=%.stage.json)
	@$(IJEPA) report $(TRAINED:%=$(OUT)/runs/%) $(PICTURES) \
	  $(foreach score,$(SCORES) $(TUNED),$(call made,$(score))) --out $(REPORT)

$(OUT)/table%.html.stage.json: $(SOURCES) $$(foreach score,$$(call tabled,$$*),$$(call record,$$(score)))
	@$(IJEPA) report $(foreach score,$(call tabled,$*),$(call made,$(score))) \
	  --out $(@:.stage.json=) --table $* \
	  --title 'Table $* of the paper at the scale $(SCALE)'

$(OUT)/shards/%/stage.json: $(SETTINGS)
	@$(IJEPA) shard $(call quoted,$(SOURCE_$*)) $(@D) $(SHARD_$*) $(WORKERS:%=--workers %)

$(OUT)/runs/%/stage.json: $(SETTINGS) $$(call shards,$$(call on,$$*)) $$(call recipes,$$*)
	@$(trainer) pretrain --recipe $(call recipe,$*) --data $(OUT)/shards/$(call on,$*) \
	  --out $(@D) --set seed=$(SEED) $(WORKERS:%=--workers %) --replace $(PRETRAIN) $(PRETRAIN_$*)

$(OUT)/features/%.train.h5.stage.json: $(SETTINGS) $$(call shards,$$(call part,1,$$*)) $$(call run,$$(call part,2,$$*))
	@$(trainer) extract --encoder $(call quoted,$(call encoder,$(call part,2,$*))) \
	  --data $(OUT)/shards/$(call part,1,$*) --split train --out $(@:.stage.json=) \
	  $(WORKERS:%=--workers %) $(EXTRACT_$(call part,1,$*)) $(VIEWS_$(call part,1,$*))

$(OUT)/features/%.test.h5.stage.json: $(SETTINGS) $$(call shards,$$(call part,1,$$*)) $$(call run,$$(call part,2,$$*))
	@$(trainer) extract --encoder $(call quoted,$(call encoder,$(call part,2,$*))) \
	  --data $(OUT)/shards/$(call part,1,$*) --split $(call test,$(call part,1,$*)) \
	  --out $(@:.stage.json=) $(WORKERS:%=--workers %) $(EXTRACT_$(call part,1,$*))

$(OUT)/probes/%.json.stage.json: $(SETTINGS) $$(addsuffix .stage.json,$$(call features,$$*))
	@$(IJEPA) probe $(basename $(call part,3,$*)) \
	  --label $(subst .,,$(suffix $*)) --seed $(SEED) --out $(@:.stage.json=) \
	  $(foreach side,train test,--$(side) $(call stored,$*,$(call part,2,$*),$(side))) \
	  $(foreach other,$(BASELINES_$(call part,2,$*)),$(foreach side,train test,\
	    --baseline-$(side) $(call stored,$*,$(other),$(side)))) \
	  $(call protocol,$(call part,1,$*).$(call part,3,$*),$(call part,2,$*))

$(OUT)/tuned/%/stage.json: $(SETTINGS) $$(call shards,$$(call part,1,$$*)) $$(call run,$$(call part,2,$$*))
	@$(trainer) finetune --encoder $(call quoted,$(call encoder,$(call part,2,$*))) \
	  --data $(OUT)/shards/$(call part,1,$*) --test-split $(call test,$(call part,1,$*)) \
	  --subset $(call quoted,$(or $(ONE_PERCENT),1%)) --seed $(SEED) --out $(@D) \
	  $(WORKERS:%=--workers %) --replace $(TUNE) $(TUNE_$(call part,2,$*))

# --- Pictures of MAIN and of its untrained self.

SHOWN    := --data $(OUT)/shards/$(call on,$(MAIN)) --seed $(SEED)
BOTH     := --encoder $(OUT)/runs/$(MAIN) --encoder $(ENCODER_random)
MAIN_RUN := $(OUT)/runs/$(MAIN)/stage.json
SEEN     := $(foreach encoder,$(MAIN) random,$(OUT)/features/$(HOME)/$(encoder).test.h5)
PICTURE   = $(OUT)/pictures/$(strip $1).stage.json

$(call PICTURE,masks.png): $(SETTINGS) $(call shards,$(HOME)) $(call recipes,$(MAIN))
	@$(IJEPA) visualize masks --recipe $(call recipe,$(MAIN)) \
	  --data $(OUT)/shards/$(HOME) --out $(@:.stage.json=)

$(foreach name,attention pca retrieval,$(call PICTURE,$(name).png)): $(call PICTURE,%.png): $(MAIN_RUN)
	@$(IJEPA) visualize $* $(BOTH) --split $(call test,$(HOME)) $(SHOWN) --out $(@:.stage.json=)

$(call PICTURE,neighbors.png): $(SEEN:%=%.stage.json)
	@$(IJEPA) visualize neighbors $(SHOWN) --out $(@:.stage.json=) $(SEEN:%=--features %)

$(call PICTURE,embedding.html): $(OUT)/features/$(HOME)/$(MAIN).test.h5.stage.json
$(call PICTURE,embedding-random.html): $(OUT)/features/$(HOME)/random.test.h5.stage.json
$(foreach name,embedding embedding-random,$(call PICTURE,$(name).html)):
	@$(IJEPA) visualize embedding $(SHOWN) --out $(@:.stage.json=) --features $(<:.stage.json=)

$(OUT)/decoder/stage.json: $(MAIN_RUN)
	@$(IJEPA) train-decoder --encoder $(OUT)/runs/$(MAIN) --test-split $(call test,$(HOME)) \
	  $(SHOWN) $(WORKERS:%=--workers %) --out $(@D) --replace $(DECODER)

$(call PICTURE,predictions.png): $(OUT)/decoder/stage.json
	@$(IJEPA) visualize predictions --encoder $(OUT)/runs/$(MAIN) --decoder $(OUT)/decoder \
	  --split $(call test,$(HOME)) $(SHOWN) --out $(@:.stage.json=)
