# Every table as the paper has it: its recipes, its data, its protocols. Weeks on many GPUs; `make -n
# reproduce SCALE=in1k GPUS=16 IN1K=/data/imagenet ...` prints the commands. Data: IN1K= (ILSVRC 2012),
# IN22K=, CIFAR100=, PLACES205=, INAT18=, CLEVR=. What is not given is not run. ONE_PERCENT= is the
# published list of 12,811 images (google-research/simclr, imagenet_subsets/1percent.txt).
# TABLES="1 2 3 4 5 6 7 8 9 10 11 12 13 14" adds the appendix. Memory: PRETRAIN="--micro-batch 64".
#
# DATASETS is ImageNet-1K first; runs are the package's recipes.

DATASETS         := in1k in22k cifar100 places205 inat18 clevr
SOURCE_in1k      := $(IN1K:%=imagenet:%)
SOURCE_in22k     := $(IN22K:%=imagenet22k:%)
SOURCE_cifar100  := $(CIFAR100:%=cifar100:%)
SOURCE_places205 := $(PLACES205:%=places205:%)
SOURCE_inat18    := $(INAT18:%=inat18:%)
SOURCE_clevr     := $(CLEVR:%=clevr:%)
SHARD_in22k      := --val-fraction 0.001
TEST_cifar100    := test
EXTRACT_clevr    := --crop squash
$(foreach set,in1k cifar100,$(eval EXTRACT_$(set) := --interpolation bicubic))
VIEWS_clevr      := --views 1 --augment flip
$(foreach set,in1k cifar100 places205 inat18,$(eval VIEWS_$(set) := --views 2 --augment rrc-flip))

B16   := in1k_vitb16_ep600
L16   := in1k_vitl16_ep600
H14   := in1k_vith14_ep300
H448  := in1k_vith16-448_ep300
H22K  := in22k_vith14_ep66
G22K  := in22k_vitg16_ep44
MASKS := in1k_vitb16_ep300
PACKAGED := $(notdir $(basename $(wildcard ijepa/recipes/in*.yaml ijepa/recipes/table*.yaml)))
RUNS  := $(PACKAGED)
MAIN  := $(H14)
ON_$(H22K) := in22k
ON_$(G22K) := in22k

few    = $(foreach e,$1,in1k/$e/few-shot.class)
linear = $(foreach e,$1,in1k/$e/linear.class)
tuned  = $(foreach e,$1,tuned/in1k/$e)
moved  = $(foreach e,$1,cifar100/$e/linear.class places205/$e/linear.class inat18/$e/linear.class)
low    = $(foreach e,$1,clevr/$e/linear.count clevr/$e/linear.dist)
table  = $(filter table$1_%,$(PACKAGED))

TABLE1  := $(call linear,$(B16) $(L16) $(H14) $(H448) $(FOREIGN))
TABLE2  := $(call few,$(L16) $(H14) $(H448) $(FOREIGN)) $(call tuned,$(L16) $(H14) $(H448) $(FOREIGN))
TABLE3  := $(call moved,$(H14) $(FOREIGN))
TABLE4  := $(call low,$(H14) $(FOREIGN))
TABLE5  := $(foreach e,$(H14) $(H22K) $(G22K),$(call moved,$e) $(call low,$e))
TABLE6  := $(call few,$(MASKS) $(call table,06))
TABLE7  := $(call few,$(call table,07))
TABLE8  := $(call few,$(MASKS) $(call table,08))
TABLE9  := $(call few,$(MASKS) $(call table,09))
TABLE10 := $(call few,$(MASKS) $(call table,10))
TABLE11 := $(call few,$(call table,11))
TABLE12 := $(call few,$(call table,12))
TABLE13 := $(foreach e,$(L16) $(call table,13),$(call tuned,$e) $(call linear,$e))
TABLE14 := $(call tuned,$(call table,14))

PROBE_in1k.linear.class         := --protocol vissl-in1k
PROBE_in1k.linear.class.$(H14)  := --protocol vissl-in1k-lars
PROBE_in1k.few-shot.class       := --protocol msn $(if $(ONE_PERCENT),--subset $(ONE_PERCENT),--shots 0.01)
PROBE_cifar100.linear.class     := --protocol vissl-cifar100
PROBE_places205.linear.class    := --protocol vissl-places205
PROBE_inat18.linear.class       := --protocol vissl-inat18
PROBE_clevr.linear.count        := --protocol vissl-clevr-count
PROBE_clevr.linear.dist         := --protocol vissl-clevr-dist

TUNE_$(H14)  := --protocol imagenet-1pct-huge
TUNE_$(H448) := --protocol imagenet-1pct-huge
DECODER      := --steps 100000 --set image_px=64
