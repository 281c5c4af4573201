"""Train a decoder that draws a block's pixels from its average embedding, and measure it."""

from pathlib import Path

from ijepa.config import RUNTIME, Config, DecoderConfig, Runtime, StrPath
from ijepa.data.shards import open_shards
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.files import read_json
from ijepa.progress import Progress, automatic
from ijepa.stage import StagePlan, exclusive_work
from ijepa.world import current_world

VERSION = 4
RESULT = "result.json"


class DecoderResult(Config):
    """A finished decoder, and how closely its samples follow their condition.

    Distances are means, over held-out images, of the cosine distance from a block's embedding to
    that of a sample, in the frozen encoder's features.
    """

    out: Path
    cached: bool
    steps: int
    loss: float  # mean over the last tenth of the steps
    images: int  # held-out images
    true: float  # distance to a sample of this embedding
    shuffled: float  # to a sample of another image's embedding of the same place
    predicted: float  # to a sample of the predictor's output
    resized: float  # to the true pixels at the decoder's resolution, which no sample can beat
    gain: float  # shuffled less true
    gain_interval: tuple[float, float]  # 95%, paired t
    closer: float  # share of images whose true sample is closer than the shuffled one


def train_decoder(
    shards: StrPath,
    out: StrPath,
    config: DecoderConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
) -> DecoderResult:
    """Train on blocks of `config.split` of a shard set, and measure on `config.test_split`.

    The folder `out` gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    `result.json`. Until it is finished it is `<out>.partial`. `progress` is told of steps done.

    Raises:
        IjepaError: diffusers is missing, the encoder has no predictor or does not predict
            embeddings, its target blocks are no rectangles, too few images.
    """
    if current_world().size > 1:
        raise IjepaError("ijepa train-decoder runs in one process; start it without torchrun.")
    data = open_shards(Path(shards))
    test = data.named_split(config.test_split, config.split)
    config = config.model_copy(update={"test_split": test})
    encoder = EncoderSpec.parse(config.encoder).fingerprint(progress)
    inputs, precious = {"data": data.fingerprint, "encoder": encoder}, not runtime.replace
    plan = StagePlan("train-decoder", VERSION, config, inputs, Path(out), precious, is_folder=True)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            from ijepa.train_decoder.training import train

            train(work, data, config, runtime, progress)
        return DecoderResult(out=plan.out, cached=work.cached, **read_json(plan.out / RESULT))
