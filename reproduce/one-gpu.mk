# What the scales of one GPU share: which runs, and what each table needs of them. A scale that includes
# this names its data sets first, the one that is pretrained on before all others.
#
# small, main and large stand for ViT-B, L and H; fine for H at 448 pixels; more for ImageNet-22K.

SOURCE_cifar10    := $(CIFAR10:%=cifar10:%)
SOURCE_cifar100   := $(CIFAR100:%=cifar100:%)
SOURCE_imagenette := $(IMAGENETTE)
SOURCE_clevr      := $(CLEVR:%=clevr:%)
SOURCE_more       := $(MORE)
TEST_cifar10      := test
TEST_cifar100     := test
EXTRACT_clevr     := --crop squash
VIEWS_cifar100    := --views 2 --augment rrc-flip
VIEWS_clevr       := --views 1 --augment flip

RUNS              := small main large fine main-more large-more rasterized block random-masks pixel-targets
MAIN              := main
ON_main-more      := more
ON_large-more     := more
BASELINES_main    := random pixels

OWN               := $(firstword $(DATASETS))
OTHERS            := $(filter-out $(OWN) more clevr,$(DATASETS))
SIZES             := small main large fine $(FOREIGN)
SCALED            := main main-more large-more
MASKED            := main rasterized block random-masks
EVALUATED         := main $(FOREIGN)
moved              = $(foreach set,$(OTHERS),$(set)/$1/linear.class)
low                = clevr/$1/linear.count clevr/$1/linear.dist
few                = $(OWN)/$1/few-shot.class $(OWN)/$1/logistic.class

TABLE1            := $(SIZES:%=$(OWN)/%/linear.class) $(OWN)/main/knn.class
TABLE2            := $(SIZES:%=$(OWN)/%/few-shot.class) $(SIZES:%=tuned/$(OWN)/%)
TABLE3            := $(foreach e,$(EVALUATED),$(call moved,$e))
TABLE4            := $(foreach e,$(EVALUATED),$(call low,$e))
TABLE5            := $(foreach e,$(SCALED),$(call moved,$e) $(call low,$e))
TABLE6            := $(foreach e,$(MASKED),$(call few,$e))
TABLE7            := $(foreach e,main pixel-targets,$(call few,$e))

PROBE_cifar100.linear.class := --protocol vissl-cifar100
PROBE_clevr.linear.count    := --protocol vissl-clevr-count
PROBE_clevr.linear.dist     := --protocol vissl-clevr-dist

DECODER           := --steps 5000
