"""An encoder as an ONNX file, which is held against the encoder itself by onnxruntime."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ijepa.encoders.base import Encoder
from ijepa.errors import IjepaError

INPUT, OUTPUTS = "images", ("patch_tokens", "features")
TOLERANCE = 1e-4  # of the largest difference, where numbers are above 1 in proportion to them
CHECKED_BATCHES = (1, 3)
FILE_BYTES = 2_000_000_000  # protobuf holds no more; larger weights get a file of their own


class _Graph(nn.Module):
    """Normalised images (n, C, height, width) -> patch tokens (n, N, dim), features (n, dim)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.network, self._pool = encoder.network, encoder._pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, tokens = self._pool(self.network, images, 1)
        assert tokens is not None  # refused before
        return tokens, features[:, 0]


def write_onnx(encoder: Encoder, out: Path, notes: Mapping[str, object]) -> float:
    """Write `out` with a dynamic batch, and compute some images by it and by the encoder.

    Args:
        encoder: on the CPU, with patch tokens.
        out: file to make; weights above 2 GB are written beside it, as `OUT.data`.
        notes: what the file's metadata says beside the encoder's view of images, by name.

    Returns:
        The largest difference of any number, relative to the largest number if that is above 1.

    Raises:
        IjepaError: the encoder has no patch tokens, cannot be exported, or differs by over 1e-4.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise IjepaError(
            "--to onnx needs onnx, onnxruntime and onnxscript; install them with "
            "pip install onnx onnxruntime onnxscript."
        ) from error
    data = encoder.data
    channels = data.num_channels
    images = torch.zeros(max(CHECKED_BATCHES), channels, *data.image_size)
    _, tokens = encoder.features_and_tokens(images)
    metadata: dict[str, object] = {
        "input": f"float32 (n, {channels}, height, width): 0 to 1, minus mean, over std",
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "interpolation": "bilinear, antialiased",
        "crop": f"center, {data.eval_crop_fraction:.6g} of the short side",
        "patches": tokens.shape[1],
        "pooling": encoder.pooling,
        **notes,
    }
    program: Any
    try:
        program = torch.onnx.export(
            _Graph(encoder).eval(),
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise IjepaError(f"{encoder.name} cannot be exported to ONNX ({reason}).") from error
    for name, value in metadata.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    program.save(out, external_data=weight_bytes(encoder) > FILE_BYTES)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    difference = _largest_difference(encoder, session)
    if not difference <= TOLERANCE:
        out.unlink()
        raise IjepaError(
            f"The ONNX file of {encoder.name} gives other features than the encoder, by up to "
            f"{difference:.1e}; more than {TOLERANCE:g} is not published. Try another version of "
            f"torch or onnxruntime."
        )
    return difference


def weight_bytes(encoder: Encoder) -> int:
    """Bytes of all weights."""
    return sum(value.nbytes for value in encoder.state_dict().values())


def _largest_difference(encoder: Encoder, session: Any) -> float:  # noqa: ANN401  # onnxruntime has no types
    rng, found = torch.Generator().manual_seed(0), []
    for batch in CHECKED_BATCHES:
        images = torch.randn(
            batch, encoder.data.num_channels, *encoder.data.image_size, generator=rng
        )
        features, tokens = encoder.features_and_tokens(images)
        for ours, theirs in zip(
            (tokens.numpy(), features[:, 0].numpy()),
            session.run(OUTPUTS, {INPUT: images.numpy()}),
            strict=True,
        ):
            found.append(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    return float(np.max(found))  # nan if any is
