"""Every choice that changes a result: typed, frozen, checked when it is made.

Defaults are the published recipe (facebookresearch/ijepa configs/in1k_vith14_ep300.yaml) unless a
field says otherwise. What does not change a result (device, workers, logging) is in `Runtime`.
"""

from ijepa.config.pictures import *  # noqa: F403  # one namespace in four files
from ijepa.config.pretrain import *  # noqa: F403  # likewise
from ijepa.config.stages import *  # noqa: F403  # likewise
from ijepa.config.values import *  # noqa: F403  # likewise
