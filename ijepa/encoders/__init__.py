"""Any frozen encoder by name: a run, `random:vit_small/16@224`, `pixels`, `mae:FILE`, `timm:NAME`.

An encoder turns a batch of images into features, one row an image and layer; it says itself what
it wants to see and how it was made. `identity` tells encoders apart without loading them;
`catalogue` has the kinds, and an entry there with a module that loads it adds one.
"""
