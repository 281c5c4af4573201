# Every table with rendered scenes and small networks: two CPU cores, 40 minutes.
# Its numbers show the machinery and the direction of differences, not the paper's numbers.
#
# small, main, large, hires stand for ViT-B, L, H and H at 448 pixels; more for ImageNet-22K.

export OMP_NUM_THREADS := 1

DATASETS         := scenes more crowded sparse
SOURCE_scenes    := scenes:train=10000,val=3000
SOURCE_more      := scenes:train=20000,val=1000,seed=1
SOURCE_crowded   := scenes:train=3000,val=3000,objects=3-10,scale=1,area=3,seed=2
SOURCE_sparse    := scenes:train=3000,val=3000,objects=3-4,scale=2,seed=3

RUNS             := small main large hires main-more large-more rasterized block random-masks pixel-targets
MAIN             := main
ON_main-more     := more
ON_large-more    := more
BASELINES_main   := random pixels

SIZES            := small main large hires $(FOREIGN)
MASKED           := main rasterized block random-masks
SCALED           := main main-more large-more

TABLE1           := $(SIZES:%=scenes/%/linear.class)
TABLE2           := $(SIZES:%=scenes/%/few-shot.class) $(SIZES:%=tuned/scenes/%)
TABLE3           := $(foreach set,crowded sparse,$(foreach e,main $(FOREIGN),$(set)/$e/linear.class))
TABLE4           := $(foreach label,count dist,$(foreach e,main $(FOREIGN),scenes/$e/linear.$(label)))
TABLE5           := $(foreach e,$(SCALED),crowded/$e/linear.class sparse/$e/linear.class \
                      scenes/$e/linear.count scenes/$e/linear.dist)
TABLE6           := $(foreach e,$(MASKED),scenes/$e/few-shot.class scenes/$e/logistic.class)
TABLE7           := $(foreach e,main pixel-targets,scenes/$e/few-shot.class scenes/$e/logistic.class)

# A hundred labelled images make batches of 512 impossible.
TUNE             := --set batch_size=50 --set lr=3e-4 --set epochs=30 --set warmup_epochs=3
DECODER          := --steps 500 --set image_px=24
