"""Any frozen encoder by name: `load_encoder("runs/mine")`, `"random:vit_small/16@224"`, `"pixels"`.

An encoder turns a batch of images into features, one row an image and layer; it says itself what
it wants to see and how it was made.
"""

from ijepa.encoders.frozen import FrozenEncoder
from ijepa.encoders.load import load_encoder

__all__ = ["FrozenEncoder", "load_encoder"]
