"""Train a whole encoder and a classifier on labelled images, few or all."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import RUNTIME, Config, FinetuneConfig, Runtime, StrPath
from ijepa.data.shards import ShardSet, open_shards
from ijepa.encoders.spec import EncoderSpec
from ijepa.files import file_sha256
from ijepa.progress import Progress, automatic, silent
from ijepa.results.record import Scores, read_result
from ijepa.stage import StagePlan, exclusive_work
from ijepa.world import together

if TYPE_CHECKING:
    from ijepa.finetune.training import FinetunePlan, Finetuning

VERSION = 11

log = logging.getLogger(__name__)


class FinetuneResult(Config):
    """A finished fine-tuning and its score."""

    out: Path
    cached: bool
    scores: Scores


def finetune(
    shards: StrPath,
    out: StrPath,
    config: FinetuneConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    subset: StrPath | None = None,
) -> FinetuneResult:
    """Train on `config.split`, or a part of it, and score the last state on `config.test_split`.

    The folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    `result.json`, which `ijepa report` shows beside probes. Nothing is chosen, on the test split or
    on the images that `config.holdout` keeps from training: loss and accuracy on these are recorded
    after every epoch, the last ones in the result. Under torchrun every process calls this.
    `subset`, a list of training images, one key or file name a line, fills in `config.subset`.

    Raises:
        IjepaError: the encoder does not load, no such split or label, a list that names others.
    """
    data, config = _opened(shards, config)
    if subset is not None:
        config = config.model_copy(update={"subset": f"list {file_sha256(Path(subset))}"})
    inputs = {"data": data.fingerprint, "encoder": EncoderSpec.of(config).fingerprint(progress)}
    precious = not runtime.replace
    plan = StagePlan("finetune", VERSION, config, inputs, Path(out), precious, is_folder=True)
    with together(exclusive_work(plan, runtime), runtime) as (work, world):
        if not work.cached:
            told = progress if world.is_rank_0 else silent
            _finetuning(data, config, subset).train(work, runtime, world, told)
    return FinetuneResult(out=plan.out, cached=work.cached, scores=read_result(plan.out))


def plan_finetune(
    shards: StrPath, config: FinetuneConfig, subset: StrPath | None = None
) -> "FinetunePlan":
    """Say what `finetune` would do; raises as it would, but for images that are in both splits."""
    return _finetuning(*_opened(shards, config), subset).plan()


def _finetuning(data: ShardSet, config: FinetuneConfig, subset: StrPath | None) -> "Finetuning":
    """Encoder and images; behind the cached answer, for torch takes seconds to import."""
    from ijepa.finetune.training import Finetuning

    return Finetuning(data, config, subset)


def _opened(shards: StrPath, config: FinetuneConfig) -> tuple[ShardSet, FinetuneConfig]:
    """The shard set, and the configuration with the name of the test split filled in."""
    data = open_shards(Path(shards))
    fitted = {"test_split": data.named_split(config.test_split, config.split)}
    if data.pixels and config.randaugment:
        log.warning("RandAugment is left out: it is made for 8-bit RGB images")
        fitted["randaugment"] = ""
    return data, config.model_copy(update=fitted)
