"""The baselines of the paper, from the files that their authors released.

MAE, DINO, iBOT and MSN are timm's VisionTransformer key for key; data2vec and CAE are its BEiT:
biases of queries and values apart, a scale on each branch, and for data2vec one table of relative
positions that all blocks share. SimCLR v2 and BYOL are wide ResNets trained in TensorFlow and JAX,
in their PyTorch conversions. Both pad as TensorFlow's `SAME` does where it differs from PyTorch: on
images of even size, one pixel less on top and left. BYOL does so in every convolution; SimCLR v2
only where it pools (google-research/simclr `resnet.py`), which its conversion has otherwise.
Sizes are read from the shapes in the file.
"""

import logging
from functools import partial
from typing import Any

import torch
from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm import LayerNorm
from timm.layers.norm_act import BatchNormAct2d
from timm.models.beit import Beit
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ijepa.config import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ijepa.encoders.base import EVAL_CROP, Encoder
from ijepa.encoders.formats import Weights
from ijepa.encoders.pooling import CLASS_TOKEN, MAP_AVERAGE, Pooling, token_pool
from ijepa.encoders.spec import KINDS, METHOD_ROWS, RESNETS, EncoderSpec
from ijepa.errors import IjepaError
from ijepa.provenance import Provenance, paper_arch
from ijepa.weights import SHARED_TABLE, VitSize, load_weights, read_weights, unwrapped, vit_size

RESNET_PX = 224
COUNTER = "num_batches_tracked"  # of batch norms; of no effect on features
HEADS = {size.dim: size.heads for size in ARCHITECTURES.values()}  # others: 64 wide each

log = logging.getLogger(__name__)


def load(spec: EncoderSpec) -> Encoder:
    """Load a released file, exactly or not at all."""
    weights, epoch = read_released(spec)
    if spec.kind in RESNETS:
        return _resnet(spec, weights, epoch)
    size = vit_size(weights, spec.text, prefix_tokens=1)
    network = vit_network(spec.kind, size, weights)
    wanted = {k: v for k, v in weights.items() if not k.endswith("relative_position_index")}
    load_weights(network, wanted, spec.text, assign=True)
    network.float()
    own_px = size.side_patches * size.patch_px
    arch = paper_arch((size.dim, size.depth), size.patch_px, own_px)
    return Encoder(
        network,
        token_pool(network, CLASS_TOKEN),
        DataConfig(image_px=own_px, eval_crop_fraction=EVAL_CROP),
        name=f"{spec.text} ({spec.which})" if KINDS[spec.kind].context else spec.text,
        provenance=released_provenance(spec, epoch, arch),
        which=spec.which,
    )


def read_released(spec: EncoderSpec) -> tuple[Weights, int | None]:
    """The encoder's weights in a file, by the file's names, and the epoch that it records."""
    assert spec.file is not None
    kind = KINDS[spec.kind]
    body = unwrapped(read_weights(spec.file), spec.file)
    keys = kind.context if spec.which == "context" else kind.target
    place = f" under {' or '.join(keys)}" if keys else ""
    found = [body[key] for key in keys if isinstance(body.get(key), dict)]
    if not found and spec.which == "context":
        raise IjepaError(f"{spec.text} holds no second encoder{place}; leave --which context out.")
    weights = found[0] if found else body
    if kind.part and any(name.startswith(kind.part) for name in weights):
        weights = {
            name.removeprefix(kind.part): value
            for name, value in weights.items()
            if name.startswith(kind.part)
        }
    weights = {k: v for k, v in weights.items() if not k.startswith(kind.others)}
    strange = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange or not weights:
        begins = ", ".join(strange[:3]) or "nothing"
        raise IjepaError(f"{spec.text} holds {begins}; expected weights{place}: {kind.what}.")
    epoch = body.get("epoch")
    return weights, epoch if isinstance(epoch, int) else None


def released_provenance(spec: EncoderSpec, epoch: int | None, arch: str) -> Provenance:
    """Where a released file comes from: the paper's encoder of that method and size.

    A file that names another epoch is not that encoder. Files of weights alone do not say on what
    they were trained, or for how long; a log line says what they are taken for.
    """
    method = KINDS[spec.kind].method
    rows = (row for _, row in METHOD_ROWS if (row.method, row.arch) == (method, arch))
    found = {row.epochs for row in rows} - {None}
    if len(found) != 1:
        return Provenance(method=method, arch=arch)
    epochs = found.pop()
    restarts = spec.kind == "data2vec"  # its second 800 epochs are counted from 0 again
    if epoch is not None and epochs and epoch not in (epochs - 1, epochs) and not restarts:
        return Provenance(method=method, arch=arch, epochs=epoch)
    log.info(
        "%s is taken for the released weights: %s, %s, %d epochs of ImageNet-1K",
        spec.text, method, arch, epochs,
    )  # fmt: skip
    return Provenance(method=method, arch=arch, epochs=epochs, data="IN1k")


def vit_network(kind: str, size: VitSize, weights: Weights) -> VisionTransformer | Beit:
    """Timm's network of that size; its weights are still to be assigned."""
    heads = HEADS.get(size.dim, max(1, size.dim // 64))
    settings: dict[str, Any] = {
        "img_size": size.side_patches * size.patch_px,
        "patch_size": size.patch_px,
        "embed_dim": size.dim,
        "depth": size.depth,
        "mlp_ratio": (size.hidden + 0.5) / size.dim,  # timm rounds down
        "num_classes": 0,
        "global_pool": "token",
        "norm_layer": LayerNorm,
    }
    if kind in ("data2vec", "cae"):
        shared = kind == "data2vec"
        if shared and SHARED_TABLE in weights:  # without one, the check says so
            heads = weights[SHARED_TABLE].shape[1]
        if kind == "cae" and size.dim == 384:
            heads = 12  # cae_small's heads are 32 wide
        return Beit(
            num_heads=heads,
            init_values=1.0,  # any: the file has its own
            use_abs_pos_emb=not shared,
            use_shared_rel_pos_bias=shared,
            **settings,
        )
    with torch.device("meta"):  # nothing to initialise: the file's weights take its place
        return VisionTransformer(num_heads=heads, weight_init="skip", **settings)


def _resnet(spec: EncoderSpec, released: Weights, epoch: int | None) -> Encoder:
    weights, depths, width = timm_resnet(spec.kind, released, spec.text)
    with torch.device("meta"):
        network = ResNetV2(
            depths,
            width_factor=width,  # type: ignore[arg-type]  # halves are as good
            stem_type="same",
            preact=False,
            num_classes=0,
            norm_layer=partial(BatchNormAct2d, eps=1e-5),
            conv_layer=partial(create_conv2d, padding=RESNETS[spec.kind]["padding"]),
        )
    counters = (name for name in network.state_dict() if name.endswith(COUNTER))
    weights |= {name: torch.tensor(0) for name in counters}
    load_weights(network, weights, spec.text, assign=True)
    network.float()
    normalised = spec.kind == "byol"  # SimCLR v2 sees pixels from 0 to 1
    data = DataConfig(
        image_px=RESNET_PX,
        eval_crop_fraction=EVAL_CROP,
        mean=IMAGENET_MEAN if normalised else (0.0, 0.0, 0.0),
        std=IMAGENET_STD if normalised else (1.0, 1.0, 1.0),
    )
    return Encoder(
        network,
        Pooling(_last_map, 1, MAP_AVERAGE),
        data,
        name=spec.text,
        provenance=released_provenance(spec, epoch, resnet_arch(depths, width)),
    )


def _last_map(network: ResNetV2, images: Tensor, num_layers: int) -> tuple[Tensor, None]:
    del num_layers  # layers differ in width: the last is all there is
    found: Tensor = network(images)
    return found.unsqueeze(1), None


def timm_resnet(kind: str, released: Weights, source: str) -> tuple[Weights, list[int], float]:
    """A converted file's weights by timm's names, blocks of each stage, and width by 64 channels.

    Weights without a name there keep their own, so that an error can show it.
    """
    if any("mixing_conv" in name for name in released):
        raise IjepaError(f"{source} has selective kernels; only the sk0 variants can be loaded.")
    stem, modules = RESNETS[kind]["stem"], {name.rpartition(".")[0] for name in released}
    names, depths = dict(zip(stem, ("stem.conv", "stem.norm"), strict=True)), [0, 0, 0, 0]
    for stage in range(4):
        while modules & (block := _block_names(kind, stage, depths[stage])).keys():
            names |= block
            depths[stage] += 1
    first = released.get(f"{stem[0]}.weight")
    if first is None or not first.ndim or not all(depths):
        raise IjepaError(
            f"{source} holds no such ResNet of four stages; it begins with "
            f"{', '.join(list(released)[:3])}."
        )
    weights = {}
    for name, value in released.items():
        module, _, part = name.rpartition(".")
        if part != COUNTER:
            weights[f"{names.get(module, module)}.{part}"] = value
    return weights, depths, len(first) / 64


def _block_names(kind: str, stage: int, block: int) -> dict[str, str]:
    """What timm calls the convolutions and norms of a block, by their names in a converted file."""
    names = {}
    for layer in range(4):  # 0 is the shortcut
        place = {"stage": stage + 1, "block": block, "layer": layer}
        place |= {"even": 2 * layer - 2, "odd": 2 * layer - 1}
        conv, norm = (
            name.format(**place) for name in RESNETS[kind]["layer" if layer else "shortcut"]
        )
        ours = f"stages.{stage}.blocks.{block}"
        names[conv] = f"{ours}.conv{layer}" if layer else f"{ours}.downsample.conv"
        names[norm] = f"{ours}.norm{layer}" if layer else f"{ours}.downsample.norm"
    return names


def resnet_arch(depths: list[int], width: float) -> str:
    """As the paper has it: `RN152 (2x)`."""
    return f"RN{3 * sum(depths) + 2}{f' ({width:g}x)' if width != 1 else ''}"
