"""What `extract` asks of an encoder, whatever it is."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ijepa.config import DataConfig, Precision, Rgb, Size
from ijepa.distributed import uses_bf16
from ijepa.jepa.vit import Encoder
from ijepa.provenance import Provenance

Pool = Callable[[Tensor, int], Tensor]
Transformer = Encoder | VisionTransformer | Beit

CLASS_TOKEN = "class token after the final norm"
PATCH_AVERAGE = "average of patch tokens after the final norm"
MAP_AVERAGE = "average of the last feature map"
NOTHING = "none: every pixel"


class Asked(NamedTuple):
    """An encoder that is asked for by `kind:rest`.

    Attributes:
        kind: a key of `ijepa.encoders.catalogue.KINDS`; likewise `rest`, what follows the colon.
        which: `target` or `context`.
        image_px: another side, or (height, width), than the encoder's own.
        device: where it computes.
    """

    kind: str
    rest: str
    which: str
    image_px: int | Size | None
    device: torch.device

    @property
    def name(self) -> str:
        """As the user typed it."""
        return f"{self.kind}:{self.rest}"


@dataclass(frozen=True)
class FrozenEncoder:
    """Frozen features and the view that they are made from.

    Attributes:
        name: what it is, for people: `runs/mine (target)`.
        weights_sha256: of all weights by name; tells encoders apart even if their names agree.
        image_px: side of the square that it takes, or (height, width).
        crop_fraction: of the short side that the evaluation view keeps.
        mean: of the normalisation; likewise `std`.
        num_layers: how many layers it can give.
        pool: (normalised images (B, 3, height, width), layers) -> (B, layers, dim), last layer
            last.
        provenance: where it comes from.
        pooling: how one vector came of each layer, in words.
        network: the Vision Transformer behind it, ours or timm's; None where there is none.
        which: of two encoders; `target` also where a method has one alone.
    """

    name: str
    weights_sha256: str
    image_px: int | Size
    crop_fraction: float
    mean: Rgb
    std: Rgb
    num_layers: int
    pool: Pool
    provenance: Provenance
    pooling: str = PATCH_AVERAGE
    network: Transformer | None = None
    which: str = "target"

    @property
    def data(self) -> DataConfig:
        """How images are cut and normalised for it."""
        return DataConfig(
            image_px=self.image_px,
            eval_crop_fraction=self.crop_fraction,
            mean=self.mean,
            std=self.std,
        )

    @torch.inference_mode()
    def features(self, images: Tensor, num_layers: int, *, bf16: bool = False) -> Tensor:
        """Pooled features of the last layers: (B, num_layers, dim) float32.

        Args:
            images: (B, 3, height, width) float, normalised, on the encoder's device.
            num_layers: 1 to `self.num_layers`.
            bf16: multiply matrices, convolve and attend in bfloat16 (`torch.autocast`).
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return self.pool(images, num_layers).float()

    def uses_bf16(self, precision: Precision, device: torch.device) -> bool:
        """Whether features are computed in bfloat16; pixels are not computed at all."""
        return self.pooling != NOTHING and uses_bf16(precision, device)


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # not copied
    return digest.hexdigest()
