"""I-JEPA (Assran et al., CVPR 2023): pretrain, extract, probe, report.

`ijepa.load_encoder`, `ijepa.open_shards` and `ijepa.open_features` open what the stages make; each
stage is the function of its module, such as `ijepa.pretrain.pretrain`.
"""

import importlib
from typing import TYPE_CHECKING

from ijepa.errors import IjepaError
from ijepa.progress import Bars, silent
from ijepa.version import VERSION

if TYPE_CHECKING:
    from ijepa.data.shards import open_shards
    from ijepa.encoders.spec import load_encoder
    from ijepa.features.store import open_features

__version__ = VERSION
__all__ = ["Bars", "IjepaError", "load_encoder", "open_features", "open_shards", "silent"]

_HOMES = {
    "load_encoder": "ijepa.encoders.spec",
    "open_features": "ijepa.features.store",
    "open_shards": "ijepa.data.shards",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> object:
    """Import on first use: `import ijepa` alone stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ijepa' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
