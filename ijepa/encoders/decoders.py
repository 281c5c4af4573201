"""A finished decoder, loaded for the very run that it was trained on."""

from pathlib import Path

from ijepa.config import DecoderConfig, validated
from ijepa.decoder.model import TrainedDecoder, build_decoder
from ijepa.encoders.frozen import weights_sha256
from ijepa.encoders.jepa import TrainedJepa
from ijepa.errors import IjepaError
from ijepa.weights import load_state, load_weights

LAST = Path("checkpoints") / "last.pt"


def load_decoder(folder: Path, trained: TrainedJepa) -> TrainedDecoder:
    """Load what `ijepa train-decoder` made, onto the CPU.

    Args:
        folder: the decoder's.
        trained: the run whose embeddings are to be decoded.

    Raises:
        IjepaError: no decoder, a damaged one, or one that was trained on other weights.
    """
    path = folder / LAST
    if not path.is_file():
        raise IjepaError(
            f"{folder} is no finished decoder: there is no {path}. Make one with "
            f"`ijepa train-decoder`."
        )
    body = load_state(path)
    if not {"encoder_sha256", "averaged", "config"} <= body.keys():
        raise IjepaError(
            f"{path} is no checkpoint of a decoder; name one of `ijepa train-decoder`."
        )
    found = weights_sha256(trained.jepa.state_dict())
    if body["encoder_sha256"] != found:
        raise IjepaError(
            f"{folder} decodes embeddings of weights {body['encoder_sha256'][:12]} "
            f"({body['config'].get('encoder')}), but {trained.name} has weights {found[:12]}; "
            f"train a decoder for it."
        )
    config = validated(DecoderConfig, body["config"], str(path))
    decoder = build_decoder(config, trained.jepa.encoder.embed_dim)
    load_weights(decoder, body["averaged"], path)
    return TrainedDecoder(decoder.eval().requires_grad_(False), config)
