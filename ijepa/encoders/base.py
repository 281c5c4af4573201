"""What every encoder is: images in, features of its last layers out."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.arrays import Floats
from ijepa.compute import LinearKernel, computing, pick_linear
from ijepa.config import DataConfig, PixelStats, Size, height_width
from ijepa.data.decode import Picture, pixels_of
from ijepa.encoders.pooling import CLASS_TOKEN, PATCH_AVERAGE, Pooling, Transformer
from ijepa.errors import IjepaError
from ijepa.jepa.augment import evaluation_crop, normalise
from ijepa.jepa.vit import Encoder as Vit
from ijepa.jepa.vit import adapt_channels, adaptation
from ijepa.progress import Progress, automatic
from ijepa.provenance import Provenance
from ijepa.weights import weights_sha256

EVAL_CROP = 224 / 256  # all methods of the paper resize to 256 and cut 224 out
TUNABLE = (
    "fine-tuning takes Vision Transformers pooled by class token or average: runs, checkpoints and "
    "published files, random:ARCH, mae: dino: ibot: data2vec: cae: msn: and a file, timm:NAME, and "
    "hf: for I-JEPA alone"
)

log = logging.getLogger(__name__)


class Encoder(nn.Module):
    """A frozen encoder: images or image files in, feature vectors out.

    `encode` takes images and image files, `forward` batches of tensors from `transform`.

    Attributes:
        network: the module that computes; None for pixels.
        name: what it is, for people: `runs/mine (target)`.
        data: how images are resized, cut and normalised for it.
        weights_sha256: of all weights by name, before positions are interpolated; tells encoders
            apart even if their names agree.
        which: of two encoders; `target` also where a method has one alone.
        provenance: where the weights come from.
        num_layers: how many layers it can give.
        pooling: how one vector is made from each layer, in words.
    """

    def __init__(
        self,
        network: Any,  # noqa: ANN401  # ours, timm's and transformers' have no common base but Module
        pooling: Pooling,
        data: DataConfig,
        *,
        name: str,
        provenance: Provenance,
        which: str = "target",
    ) -> None:
        """Freeze the network."""
        super().__init__()
        self.network = network
        self.data, self.name, self.which = data, name, which
        self.weights_sha256 = "0" * 64 if network is None else weights_sha256(network.state_dict())
        self.provenance = provenance
        self._pool, self.num_layers, self.pooling = pooling
        self.eval().requires_grad_(False)

    def resize(self, image_px: int | Size) -> None:
        """Take images of another side, or (height, width), from now on; positions are interpolated.

        An `IjepaError` says what the network cannot take.
        """
        network, size = self.network, height_width(image_px)
        setter = getattr(network, "resize" if isinstance(network, Vit) else "set_input_size", None)
        timm_cfg = getattr(network, "pretrained_cfg", None)
        if size != self.data.image_size:
            sized = getattr(network, "patch_embed", getattr(network, "config", None))
            patches = height_width(getattr(sized, "patch_size", 1))
            if any(side % patch for side, patch in zip(size, patches, strict=True)):
                raise IjepaError(
                    f"--image-size {image_px} is no multiple of the patch's {patches[0]} pixels."
                )
            try:
                if setter:
                    setter(size)
                if timm_cfg and not isinstance(network, Transformer):  # nobody says what it takes
                    self(self._blank(size))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise IjepaError(
                    f"{self.name} does not take --image-size {image_px} ({reason})."
                ) from error
        self.data = self.data.model_copy(update={"image_px": image_px})
        self.__dict__.pop("dim", None)  # of raw pixels it depends on the size
        self.requires_grad_(False)  # also the new positions

    def _blank(self, size: Size | None = None) -> Tensor:
        """A grey image (1, C, height, width), where the encoder is."""
        blank = torch.zeros(1, self.data.num_channels, *(size or self.data.image_size))
        return blank.to(next(self.parameters(), blank))

    def fit_channels(self, pixels: PixelStats | None, where: object = "the shard set") -> "Encoder":
        """Adapt it to images of the shard set `where`, and return it; None: 8-bit RGB.

        A network of RGB images is adapted to other channels (`adapt_channels`), and takes their
        mean and standard deviation. It is logged, and `provenance` records it.

        Raises:
            IjepaError: it was trained on images of other channels, or has nothing to adapt.
        """
        channels = pixels.channels if pixels else 3
        if pixels is None or self.data.channels is not None:
            if self.data.num_channels != channels:
                raise IjepaError(
                    f"{self.name} takes images of {self.data.channels} channels, and {where} has "
                    f"{channels}; name an encoder of as many."
                )
            return self
        data, how = self.data.fitted(pixels, where), ""
        if channels != 3:
            modules: list[Any] = list(self.modules())
            convolutions = (one for one in modules if isinstance(one, nn.Conv2d))
            if (first := next(convolutions, None)) is None or first.in_channels != 3:
                raise IjepaError(f"{self.name} has no projection of RGB to adapt to {where}.")
            first.weight = nn.Parameter(adapt_channels(first.weight, channels), requires_grad=False)
            first.in_channels = channels
            for module in modules:  # which transformers compares with the images
                if getattr(module, "num_channels", channels) != channels:
                    module.num_channels = channels
            how = adaptation(channels)
            told = f"{self.weights_sha256} {how}".encode()
            self.weights_sha256 = hashlib.sha256(told).hexdigest()
            self.provenance = self.provenance.model_copy(update={"adapted": how})
            self.__dict__.pop("dim", None)
        self.data = data
        log.warning(
            "%s is made for 8-bit RGB images; it takes those of %s with their mean and std%s",
            self.name, where, f", adapting its {how}" if how else "",
        )  # fmt: skip
        return self

    @torch.inference_mode()
    def features(self, images: Tensor, num_layers: int = 1, *, bf16: bool = False) -> Tensor:
        """Pooled features of the last layers: (B, num_layers, dim) float32, last layer last.

        Args:
            images: (B, C, height, width) float, normalised, on the encoder's device.
            num_layers: 1 to `self.num_layers`.
            bf16: multiply matrices, convolve and attend in bfloat16 (`torch.autocast`).
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return self._pool(self.network, images, num_layers)[0].float()

    @torch.inference_mode()
    def features_and_tokens(
        self, images: Tensor, num_layers: int = 1, *, bf16: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What `features` gives, and the patch tokens of the last layer from the same pass.

        The tokens are (B, N, dim) float32 after the final norm, row-major, without class token or
        registers; an average of patch tokens is the average of these. Arguments as for `features`.

        Raises:
            IjepaError: the encoder has no patch tokens, as a ResNet, or one alone.
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            features, tokens = self._pool(self.network, images, num_layers)
        if tokens is None or tokens.shape[1] < 2:
            hint = ", such as pixels/8 with --image-size 64" if self.network is None else ""
            raise IjepaError(
                f"{self.name} has no patch tokens; --tokens needs a Vision Transformer, or pixels "
                f"of several patches{hint}."
            )
        return features.float(), tokens.float()

    def token_shape(self) -> tuple[int, int, int]:
        """Rows of patches, columns of patches and width of its patch tokens.

        Patches are square, so that their number and the image's shape tell the rows.
        """
        height, width = self.data.image_size
        _, num_patches, dim = self.features_and_tokens(self._blank())[1].shape
        rows = round((num_patches * height / width) ** 0.5)
        assert num_patches % rows == 0, (self.name, num_patches, height, width)
        return rows, num_patches // rows, dim

    def forward(self, images: Tensor) -> Tensor:
        """Features of the last layer: (B, dim) float32; images as for `features`."""
        return self.features(images)[:, 0]

    def transform(self, image: Picture) -> Tensor:
        """The evaluation view of one image: (C, height, width) float32, resized, cut, normalised.

        Args:
            image: a PIL image, the path of an image file, or (height, width, 3) uint8 RGB; for an
                encoder of other images, (height, width, C) of their type.

        Raises:
            IjepaError: it is none of these, or the file is not there or does not decode.
        """
        data, pixels = self.data, pixels_of(image, self.data.channels)
        view = evaluation_crop(pixels, data.image_px, data.eval_crop_fraction)
        return normalise(view, data.mean, data.std)[0]

    def encode(
        self,
        images: Picture | Iterable[Picture],
        batch_size: int = 32,
        layers: int = 1,
        progress: Progress = automatic,
    ) -> Floats:
        """Features of images, (n, layers * dim) float32: for image files, those of `ijepa extract`.

        They are computed where the encoder is (`encoder.to("cuda")`), in the precision of its
        weights. Images are read while they are needed, so `images` may be a generator.

        Args:
            images: one image, or any number: PIL images, paths of image files, or arrays of
                (height, width, 3) uint8 RGB.
            batch_size: how many are computed at a time.
            layers: how many of the last layers, side by side, the last one last.
            progress: told how many images are done; by default a bar in a notebook.

        Raises:
            IjepaError: there is no image, one cannot be read, there are not so many layers, or
                `batch_size` is below 1.
        """
        if not 1 <= layers <= self.num_layers:
            raise IjepaError(f"{self.name} gives 1 to {self.num_layers} layers, not {layers}.")
        return self._encoded(
            images, batch_size, progress, lambda batch: self.features(batch, layers).flatten(1)
        )

    def encode_patches(
        self,
        images: Picture | Iterable[Picture],
        batch_size: int = 32,
        layer: int = -1,
        progress: Progress = automatic,
    ) -> Floats:
        """Patch tokens of images, (n, patches, dim) float32; patches row by row, see `grid`.

        Arguments and errors are those of `encode`, but for `layer`, see `patch_tokens`.
        """
        return self._encoded(
            images, batch_size, progress, lambda batch: self.patch_tokens(batch, layer)
        )

    def _encoded(
        self,
        images: Picture | Iterable[Picture],
        batch_size: int,
        progress: Progress,
        compute: Callable[[Tensor], Tensor],
    ) -> Floats:
        """What `compute` gives for the views of images, batch by batch, on the CPU."""
        weight, own = next(self.parameters(), torch.empty(0)), self.data.channels
        if batch_size < 1:
            raise IjepaError(f"batch_size is {batch_size}; give 1 or more.")
        # Anything that is no image is refused when it is decoded.
        single = isinstance(images, Image.Image | str | os.PathLike)
        single = single or not isinstance(images, Iterable)
        single = single or (isinstance(images, np.ndarray) and images.ndim == 3)
        queue: Iterator[Any] = iter([images] if single else images)  # type: ignore[arg-type]  # told apart above
        total = 1 if single else len(images) if isinstance(images, Sized) else None
        parts: list[Tensor] = []
        done, linear = 0, self.pick_linear(weight.device, batch_size)
        with ThreadPoolExecutor() as readers, computing(weight.device, linear=linear):
            while batch := list(islice(queue, batch_size)):
                # A PIL image may be in a batch twice, and two threads must not load its file.
                batch = [pixels_of(x, own) if isinstance(x, Image.Image) else x for x in batch]
                views = torch.stack(list(readers.map(self.transform, batch)))
                parts.append(compute(views.to(weight)).cpu())
                done += len(batch)
                progress("encode images", done, total)
        if not parts:
            raise IjepaError("There are no images to encode; give at least one.")
        return torch.cat(parts).numpy()

    def pick_linear(self, device: torch.device, batch_size: int) -> LinearKernel:
        """The faster library for its linear layers on a CPU, see `ijepa.compute.pick_linear`."""
        if self.network is None:
            return "torch"
        patches, dim = 196, 768  # of a ViT-B/16, for networks that do not say
        if isinstance(self.network, Transformer):
            patches, dim = self.network.patch_embed.num_patches, self.network.embed_dim
        return pick_linear(device, batch_size * patches, dim)

    @cached_property
    def dim(self) -> int:
        """Width of the features of one layer."""
        if isinstance(self.network, Transformer):
            return int(self.network.embed_dim)
        return int(self(self._blank()).shape[-1])

    def __repr__(self) -> str:
        device = next(self.parameters(), torch.empty(0)).device
        return (
            f"Encoder({self.name!r}, image_px={self.data.image_px}, dim={self.dim}, "
            f"num_layers={self.num_layers}, pooling={self.pooling!r}, device='{device}')"
        )

    @property
    def vit(self) -> Vit | VisionTransformer:
        """The Vision Transformer behind it, ours or timm's; an `IjepaError` if there is none."""
        if not isinstance(self.network, Vit | VisionTransformer):
            raise IjepaError(
                f"{self.name} is no Vision Transformer of ijepa or timm, which this needs; patch "
                f"tokens of the last layer are the most that others give."
            )
        return self.network

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    @torch.inference_mode()
    def patch_tokens(self, images: Tensor, layer: int = -1) -> Tensor:
        """Patch tokens after one block and the final norm, without class token or registers.

        Args:
            images: as for `features`.
            layer: number of the layer, counted from 0 as in a list; -1 is the last, which is the
                only one of encoders that are no Vision Transformer of ijepa or timm.

        Returns:
            (B, N, dim) float32; N patches, row-major.
        """
        if not -self.num_layers <= layer < self.num_layers:
            raise IjepaError(f"{self.name} has layers 0 to {self.num_layers - 1}, not {layer}.")
        layer %= self.num_layers
        if layer == self.num_layers - 1:
            return self.features_and_tokens(images)[1]
        vit = self.vit
        if isinstance(vit, Vit):
            [tokens] = vit.forward_layers(images, [layer + 1], norm=True)  # counts from 1
            return tokens.float()
        layers: Any = vit.forward_intermediates(
            images, indices=[layer], norm=True, output_fmt="NLC", intermediates_only=True
        )
        found: Tensor = layers[0].float()
        return found

    def checked_trainable(self) -> "Encoder":
        """Return it if it can be trained as a Vision Transformer; else raise an `IjepaError`."""
        is_vit = isinstance(self.network, Transformer)
        if not is_vit or self.pooling not in (CLASS_TOKEN, PATCH_AVERAGE):
            raise IjepaError(f"{self.name} can be extracted from, not fine-tuned: {TUNABLE}.")
        return self
