"""The images and features that published protocols evaluate on."""

from dataclasses import dataclass
from typing import Literal

RESIZE_256 = 224 / 256  # torchvision's Resize(256), CenterCrop(224)


@dataclass(frozen=True)
class View:
    """What a protocol scores; None where it takes any, or where its files differ.

    Attributes:
        crop: `center` or `squash`, as `ijepa extract --crop` names it.
        crop_fraction: of the resized short side that a centre crop keeps.
        interpolation: by which images are resized: `bilinear` or `bicubic`.
        image_px: sides of the square that are published.
        features: of an image, where they are none that `ijepa extract` stores.
    """

    crop: Literal["center", "squash"] = "center"
    crop_fraction: float | None = RESIZE_256
    interpolation: Literal["bilinear", "bicubic"] | None = None
    image_px: tuple[int, ...] = (224,)
    features: str | None = None
