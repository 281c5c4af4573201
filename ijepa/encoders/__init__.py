"""Any encoder by name: a run, `random:vit_small/16@224`, `pixels`, `mae:FILE`, `timm:NAME`.

`spec` parses the name, tells encoders apart without loading them, and loads; `base` has what all
encoders are; `formats` reads I-JEPA's weights, `write` writes them. A new kind is an entry of
`catalogue.yaml` and the `load` of the module named there.
"""
