# Every table on CIFAR-10 at 32 pixels: sized for one GPU and two hours by counting FLOPs, not by
# measuring, for no GPU was at hand. Data: CIFAR10=, the folder of cifar-10-batches-py; for other
# tables CIFAR100=, IMAGENETTE= (class folders under train/ and val/), CLEVR= and MORE=, any other
# images, to be pretrained on for table 5. What is not given is not run.

DATASETS   := cifar10 more cifar100 imagenette clevr
SHARD_more := --resize 40 --val-fraction 0.01
PRETRAIN   := --cache decoded
TUNE       := --set batch_size=128 --set lr=3e-4   # 1% are 500 images, fewer than a batch of 512

include reproduce/one-gpu.mk
