# Every table on Imagenette at 224 pixels: sized for one GPU and two hours by counting FLOPs, not by
# measuring, for no GPU was at hand. Data: IMAGENETTE=, class folders under train/ and val/; for other
# tables CIFAR10=, CIFAR100=, CLEVR= and MORE=, any other images, to be pretrained on for table 5. What
# is not given is not run.

DATASETS   := imagenette more cifar10 cifar100 clevr
SHARD_more := --resize 256 --val-fraction 0.01
PRETRAIN   := --cache decoded --compile
TUNE       := --set batch_size=40 --set lr=3e-4   # 1% are 94 images, fewer than a batch of 512

include reproduce/one-gpu.mk
