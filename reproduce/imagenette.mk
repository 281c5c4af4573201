# Every table on Imagenette at 224 pixels: sized for one GPU and two hours by counting FLOPs, not by
# measuring, for no GPU was at hand. Data: IMAGENETTE=, class folders under train/ and val/; for other tables
# CIFAR10=, CIFAR100=, CLEVR= and MORE=, any other images, to be
# pretrained on for table 5. What is not given is not run.
#
# small, main and large stand for ViT-B, L and H; fine for H at 448 pixels.

DATASETS          := imagenette more cifar10 cifar100 clevr
SOURCE_cifar10    := $(CIFAR10:%=cifar10:%)
SOURCE_more       := $(MORE)
SOURCE_cifar100   := $(CIFAR100:%=cifar100:%)
SOURCE_imagenette := $(IMAGENETTE)
SOURCE_clevr      := $(CLEVR:%=clevr:%)
SHARD_more        := --resize 256 --val-fraction 0.01
TEST_cifar10      := test
TEST_cifar100     := test
EXTRACT_clevr     := --crop squash
VIEWS_cifar100    := --views 2 --augment rrc-flip
VIEWS_clevr       := --views 1 --augment flip

RUNS              := small main large fine main-more large-more rasterized block random-masks pixel-targets
MAIN              := main
ON_main-more      := more
ON_large-more     := more
PRETRAIN          := --cache decoded --compile
BASELINES_main    := random pixels

SIZES             := small main large fine $(FOREIGN)
SCALED            := main main-more large-more
ABLATED           := main rasterized block random-masks
EVALUATED         := main $(FOREIGN)

TABLE1            := $(SIZES:%=imagenette/%/linear.class) imagenette/main/knn.class
TABLE2            := $(SIZES:%=imagenette/%/few-shot.class) $(SIZES:%=tuned/imagenette/%)
TABLE3            := $(foreach e,$(EVALUATED),cifar100/$e/linear.class cifar10/$e/linear.class)
TABLE4            := $(foreach e,$(EVALUATED),clevr/$e/linear.count clevr/$e/linear.dist)
TABLE5            := $(foreach e,$(SCALED),cifar100/$e/linear.class cifar10/$e/linear.class \
                       clevr/$e/linear.count clevr/$e/linear.dist)
TABLE6            := $(foreach e,$(ABLATED),imagenette/$e/few-shot.class imagenette/$e/logistic.class)
TABLE7            := $(foreach e,main pixel-targets,imagenette/$e/few-shot.class imagenette/$e/logistic.class)

PROBE_cifar100.linear.class := --protocol vissl-cifar100
PROBE_clevr.linear.count    := --protocol vissl-clevr-count
PROBE_clevr.linear.dist     := --protocol vissl-clevr-dist

# 1% are 94 images, fewer than a batch of the published 512.
TUNE              := --set batch_size=47 --set lr=3e-4
DECODER           := --steps 5000
