"""`--prolong`: a run of more epochs begins with the states that it shares with a finished run."""

import logging
import shutil
from pathlib import Path

from ijepa.config import PretrainConfig, validated
from ijepa.errors import IjepaError
from ijepa.files import BEST, LAST, link_or_copy
from ijepa.jepa.schedules import Schedules
from ijepa.records import read_record, refuse_changed
from ijepa.stage import Work
from ijepa.weights import load_checkpoint, save_state

RATES = {
    "learning rate": Schedules.lr,
    "weight decay": Schedules.weight_decay,
    "EMA momentum": Schedules.ema,
}

log = logging.getLogger(__name__)


def resume_from(finished: Path, work: Work, config: PretrainConfig, per_epoch: int) -> None:
    """Start a longer run from the newest checkpoint that it shares with a finished, shorter run.

    From there the longer run (`work` and `config`) takes the steps that it would take if it began
    at step 0. It may differ from the shorter one in its epochs, in how often it is checked and
    saved, and in the limits of its loss.
    """
    usable = _shared_states(finished, work, config, per_epoch)
    (work.folder / LAST).parent.mkdir(exist_ok=True)
    shutil.copyfile(finished / "metrics.jsonl", work.folder / "metrics.jsonl")
    if (finished / "tensorboard").is_dir():
        board = work.folder / "tensorboard"
        shutil.copytree(finished / "tensorboard", board, dirs_exist_ok=True)
    for _, path in usable:
        link_or_copy(path, work.folder / LAST.parent / path.name)
    step, newest = usable[-1]
    body, states = load_checkpoint(newest), dict(usable)
    best = (body["facts"].get("best") or {}).get("step")
    if (finished / BEST).is_file():
        states.setdefault(load_checkpoint(finished / BEST)["step"], finished / BEST)
    if best in states:
        link_or_copy(states[best], work.folder / BEST)
        link_or_copy(newest, work.folder / LAST)
    else:  # the file of the best state is gone, so the longer run begins without one
        save_state(work.folder / LAST, body | {"facts": body["facts"] | {"best": None}})
    log.info("continuing %s after its step %d", finished, step)


def _shared_states(
    finished: Path, work: Work, config: PretrainConfig, per_epoch: int
) -> list[tuple[int, Path]]:
    """Steps and checkpoints of the finished run that the longer one passes through, too.

    First of all refuses a run that no settings could prolong, then settings that do not prolong it.
    """
    record = read_record(finished) or {}
    if record.get("stage") != "pretrain":
        raise IjepaError(f"{finished} is no finished run of `ijepa pretrain`; check --prolong.")
    before = validated(PretrainConfig, record["config"], str(finished))
    epochs = before.optimization.epochs
    longer = max(config.optimization.epochs, epochs + 1)  # no other setting may differ
    prolonged = before.optimization.model_copy(update={"epochs": longer})
    ours, theirs = (Schedules(one, per_epoch) for one in (prolonged, before.optimization))

    def changing(step: int) -> list[str]:
        return [name for name, rate in RATES.items() if rate(ours, step) != rate(theirs, step)]

    total = theirs.total_steps
    common = next((step for step in range(total) if changing(step)), total)
    kept = (finished / LAST).parent.glob("epoch-[0-9]*.pt")
    passed = [(int(path.stem.removeprefix("epoch-")) * per_epoch, path) for path in kept]
    passed = sorted([*passed, (total, finished / LAST)])
    usable = [(step, path) for step, path in passed if step <= common]
    if not usable:
        raise IjepaError(
            f"{finished} cannot be prolonged: its {' and '.join(changing(common))} depends on the "
            f"number of epochs from step {common + 1:,} on, and its first checkpoint is of step "
            f"{passed[0][0]:,}. Use a held schedule from the start "
            f"(optimization.schedule=hold-then-cool, equal optimization.ema), or start a new run "
            f"from its weights with --init {finished}."
        )
    if config.optimization.epochs <= epochs:
        raise IjepaError(
            f"{finished} has {epochs} epochs; prolong it to more, with --set optimization.epochs=N."
        )
    checked = before.watch.model_dump(include={"num_images", "held_out", "label"})
    watch = config.watch.model_copy(update=checked)  # the training images stay the same
    alike = before.model_copy(update={"optimization": prolonged, "watch": watch})
    if changed := work.plan.changes(record | {"config": alike.model_dump(mode="json")}):
        raise IjepaError(
            f"{finished} can be prolonged by more epochs only, with all else as it is: {changed}."
        )
    refuse_changed(finished)
    return usable
