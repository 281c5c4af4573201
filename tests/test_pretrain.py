"""Pretraining: exact resume, loud failure, and learning."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gratings import gratings, write_gratings
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ijepa.config import Runtime, StreamConfig
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError, StoppedError
from ijepa.files import read_metrics
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import batch_masks
from ijepa.jepa.model import Predictor, build_ijepa
from ijepa.jepa.step import Trainer
from ijepa.jepa.vit import Encoder
from ijepa.pretrain import plan_pretrain, plan_training, pretrain
from ijepa.recipes import load_recipe
from ijepa.shard import shard
from ijepa.stage import Work
from ijepa.train import loop
from ijepa.train.pretraining import PretrainTask
from ijepa.weights import load_checkpoint

CPU = Runtime(device="cpu", workers=0)
EAGER = Runtime(device="cpu", workers=0, checkpoint_seconds=1e-3)  # a checkpoint every step


def test_a_run_leaves_config_metrics_checkpoints_and_tensorboard(run, tiny_config):
    assert load_recipe(str(run / "config.yaml")) == tiny_config
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"last.pt", "epoch-0001.pt", "epoch-0002.pt"}
    assert list((run / "tensorboard").glob("events.*"))
    assert json.loads((run / "stage.json").read_text())["stage"] == "pretrain"


def test_the_speed_shown_is_of_the_steps_since_it_was_last_shown(
    shards, tiny_config, tmp_path, monkeypatch
):
    """A step takes a second here, and after the 8 steps of an epoch a checkpoint is kept."""
    clock, told, step = [0.0], [], PretrainTask.step

    def second_long(*words):
        clock[0] += 1.0
        return step(*words)

    monkeypatch.setattr(PretrainTask, "step", second_long)
    monkeypatch.setattr(PretrainTask, "speed", lambda _, per_second: {"rate": per_second})
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    config = tiny_config.model_copy(update={"checkpoint_epochs": 1})
    pretrain(shards, tmp_path / "run", config, CPU, lambda *words: told.append(words))
    shown = [(done // 32, values["rate"]) for _, done, _, values in told if "rate" in values]
    assert shown == [(8, 32.0), (16, 32.0)]


def test_every_step_is_recorded_once_and_the_watch_when_it_is_due(run):
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(17))
    assert [r["step"] for r in records if "rankme" in r] == [0, 5, 10, 15, 16]
    assert all(np.isfinite(list(record.values())).all() for record in records)


def test_a_second_run_is_cached(run, shards, tiny_config):
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    assert pretrain(shards, run, tiny_config, CPU).cached
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_run_is_never_replaced_unforced(run, shards, tiny_config):
    other = tiny_config.model_copy(update={"seed": 7})
    with pytest.raises(IjepaError, match=r"seed was 0, now 7\. .* --force"):
        pretrain(shards, run, other, CPU)
    assert pretrain(shards, run, tiny_config, CPU).cached


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_on_a_gpu_trains_as_fp32_on_a_cpu_within_its_precision(
    run, shards, tiny_config, tmp_path
):
    pretrain(shards, tmp_path / "gpu", tiny_config, Runtime(device="cuda", workers=0))
    losses = [
        [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if record["step"]]
        for folder in (run, tmp_path / "gpu")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


class StopError(Exception):
    """Raised by a progress callback, to stop a run in the middle."""


def stop_at(images):
    def progress(task, done, *_):
        if task == "pretrain images" and done >= images:
            raise StopError

    return progress


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(
    run, shards, tiny_config, tmp_path, workers
):
    out = tmp_path / "tiny"
    runtime = EAGER.model_copy(update={"workers": workers})
    with pytest.raises(StopError):
        pretrain(shards, out, tiny_config, runtime, stop_at(320))
    assert not out.exists()
    assert not pretrain(shards, out, tiny_config, CPU).cached
    assert (out / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    ours, theirs = (load_checkpoint(p / "checkpoints" / "last.pt") for p in (out, run))
    for name, weight in theirs["model"].items():
        assert torch.equal(ours["model"][name], weight), name


def test_a_run_killed_with_kill_9_goes_on_exactly(run, shards, tiny_config, tmp_path):
    out = tmp_path / "tiny"
    recipe = run / "config.yaml"
    command = [sys.executable, "-m", "ijepa_cli", "pretrain", "--recipe", str(recipe)]
    command += ["--data", str(shards), "--out", str(out), "--device", "cpu", "--workers", "0"]
    script = (
        "import os, signal, sys, torch; torch.set_num_threads(1)\n"
        "from ijepa.train.checkpoint import CheckpointWriter as Writer\n"
        "save = Writer.save\n"
        "def save_and_die(self, *body, **how):\n"
        "    save(self, *body, **how); self.wait(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "Writer.save = save_and_die\n"
        "sys.argv = sys.argv[1:]\n"
        "from ijepa_cli.main import main; main()\n"
    )
    died = subprocess.run([sys.executable, "-c", script, *command[2:]], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "tiny.partial" / "checkpoints" / "last.pt").exists()
    pretrain(shards, out, tiny_config, CPU)
    assert (out / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("how", [{"cache": "decoded"}, {"recompute": True}, {"micro_batch": 12}])
def test_how_a_run_is_computed_changes_it_by_rounding_only(run, shards, tiny_config, tmp_path, how):
    pretrain(shards, tmp_path / "other", tiny_config, CPU.model_copy(update=how))
    ours, theirs = (
        [r["loss"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
        for folder in (tmp_path / "other", run)
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-3 if "cache" in how else 1e-4)


def test_a_checkpoint_that_does_not_load_stops_the_run(shards, tiny_config, tmp_path):
    out = tmp_path / "tiny"
    with pytest.raises(StopError):
        pretrain(shards, out, tiny_config, EAGER, stop_at(320))
    last = tmp_path / "tiny.partial" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(IjepaError, match="no readable file of weights"):
        pretrain(shards, out, tiny_config, CPU)
    assert not out.exists()


def test_a_checkpoint_that_lacks_a_part_is_refused(run, tmp_path):
    body = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    del body["optimizer"]
    torch.save(body, tmp_path / "odd.pt")
    with pytest.raises(IjepaError, match=r"lacks a part .*optimizer"):
        load_checkpoint(tmp_path / "odd.pt")


def test_a_checkpoint_of_another_architecture_stops_the_run(shards, run, tiny_config, tmp_path):
    wider = tiny_config.model_copy(
        update={"encoder": tiny_config.encoder.model_copy(update={"arch": "64x2x2"})}
    )
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "wide", wider, EAGER, stop_at(320))
    last = Path("checkpoints") / "last.pt"
    shutil.copy(run / last, tmp_path / "wide.partial" / last)
    with pytest.raises(IjepaError, match=r"another architecture: encoder\..* expected \("):
        pretrain(shards, tmp_path / "wide", wider, CPU)


def test_a_loss_that_is_not_finite_stops_the_run(shards, tiny_config, tmp_path):
    hot = tiny_config.model_copy(
        update={
            "optimization": tiny_config.optimization.model_copy(
                update={"lr": 1e30, "start_lr": 1e30}
            )
        }
    )
    with pytest.raises(IjepaError, match=r"not finite at step \d+|loss is (nan|inf) at step \d+"):
        pretrain(shards, tmp_path / "hot", hot, CPU)


@pytest.fixture
def broken_batches(monkeypatch):
    """Numbers of batches whose images are not numbers."""
    broken, prepare = set(), PretrainTask.prepare

    def prepare_some_broken(task, batch):
        inputs = prepare(task, batch)
        return inputs._replace(images=inputs.images * np.nan) if batch.step in broken else inputs

    monkeypatch.setattr(PretrainTask, "prepare", prepare_some_broken)
    return broken


def with_rollbacks(config, rollbacks):
    watch = config.watch.model_copy(update={"rollbacks": rollbacks})
    return config.model_copy(update={"watch": watch})


def test_a_broken_batch_is_left_out_if_rollbacks_are_allowed(
    shards, tiny_config, tmp_path, broken_batches, caplog
):
    broken_batches.add(11)
    config = with_rollbacks(tiny_config, 1)
    pretrain(shards, tmp_path / "run", config, CPU)  # with a checkpoint after step 8
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(17))
    assert all(np.isfinite(list(record.values())).all() for record in records)
    left_out = [record.get("left_out_batches", 0) for record in records]
    assert left_out == [0] * 9 + [left_out[-1]] * 8
    assert left_out[-1] >= 12 - 8
    assert "Going back to step 8 without the batches since (rollback 1 of 1)" in caplog.text


def test_a_run_that_went_back_remembers_it_when_it_is_stopped(
    shards, tiny_config, tmp_path, broken_batches
):
    broken_batches.add(11)
    config = with_rollbacks(tiny_config, 1)
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "run", config, EAGER, stop_at(15 * 32))
    before = load_checkpoint(last_of(tmp_path / "run.partial"))["facts"]
    pretrain(shards, tmp_path / "run", config, CPU)
    after = load_checkpoint(last_of(tmp_path / "run"))["facts"]
    assert before["left_out"] == after["left_out"] > 0
    assert before["rollbacks"] == after["rollbacks"] == 1


def last_of(run):
    return run / "checkpoints" / "last.pt"


def test_more_broken_batches_than_rollbacks_stop_the_run(
    shards, tiny_config, tmp_path, broken_batches
):
    broken_batches.update((9, 15))
    config = with_rollbacks(tiny_config, 1)
    with pytest.raises(IjepaError, match=r"not finite at step \d+ \(images .*last good state"):
        pretrain(shards, tmp_path / "run", config, CPU)
    with pytest.raises(IjepaError, match="not finite"):  # nor does starting again help
        pretrain(shards, tmp_path / "run", config, CPU)


def test_weights_that_are_not_finite_are_never_saved(shards, tiny_config, tmp_path, monkeypatch):
    step = Trainer.step

    def overflow(trainer, number, *inputs, **options):
        outcome = step(trainer, number, *inputs, **options)
        if number == trainer.schedules.steps_per_epoch - 1:  # no loss after it that could tell
            trainer.model.predictor.mask_token.data.fill_(np.inf)
        return outcome

    monkeypatch.setattr(Trainer, "step", overflow)
    with pytest.raises(IjepaError, match="The weights are no longer finite at step"):
        pretrain(shards, tmp_path / "run", tiny_config, CPU)
    assert not last_of(tmp_path / "run.partial").exists()


def test_too_few_images_for_a_batch_are_refused(shards, tiny_config, tmp_path):
    large = tiny_config.model_copy(
        update={"data": tiny_config.data.model_copy(update={"batch_size": 500})}
    )
    with pytest.raises(IjepaError, match=r"256 images, fewer than one batch of 500"):
        pretrain(shards, tmp_path / "large", large, CPU)


def test_masks_that_do_not_fit_are_refused_before_anything_is_made(shards, tiny_config, tmp_path):
    coarse = tiny_config.model_copy(
        update={"encoder": tiny_config.encoder.model_copy(update={"patch_px": 16})}
    )
    with pytest.raises(IjepaError, match="do not fit a grid of 2x2"):
        pretrain(shards, tmp_path / "coarse", coarse, CPU)
    assert not (tmp_path / "coarse").exists()


def test_the_plan_counts_what_the_run_does(run, shards, tiny_config):
    plan = plan_pretrain(shards, tiny_config)
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert plan.steps == last["step"]
    assert plan.images_seen == last["images"]
    weights = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    count = sum(
        w.numel() for n, w in weights.items() if n.startswith("encoder.") and "pos" not in n
    )
    assert plan.encoder_parameters == count


@pytest.mark.parametrize(
    ("group_size", "micro_batch"), [(32, None), (16, None), (32, 12), (12, 8), (12, 5)]
)
def test_the_plan_counts_the_passes_of_a_step(group_size, micro_batch, tiny_config):
    masks = tiny_config.masks.model_copy(update={"group_size": group_size})
    config = tiny_config.model_copy(update={"masks": masks})
    runtime = CPU.model_copy(update={"micro_batch": micro_batch})
    planned = plan_training(256, config, runtime, on_gpu=False).passes_per_step
    model, calls = build_ijepa(config), []
    for network in (model.encoder, model.predictor):
        network.register_forward_hook(lambda module, *_: calls.append(type(module)))
    trainer = Trainer(model, config.optimization, 8, micro_batch)
    trainer.step(0, torch.randn(32, 3, 32, 32), batch_masks(config, 0))
    assert calls.count(Encoder) == calls.count(Predictor) == planned


def test_the_plan_counts_the_shapes_of_the_masks(tiny_config):
    plan = plan_training(256, tiny_config, CPU, on_gpu=False)
    assert plan.mask_shapes > 4
    masks = tiny_config.masks.model_copy(update={"context_patches": 24})
    held = plan_training(256, tiny_config.model_copy(update={"masks": masks}), CPU, on_gpu=False)
    assert held.mask_shapes < plan.mask_shapes
    assert held.context_patches == held.largest_context == 24
    assert held.context_patches == 24


def accuracy(encoder, train, test):
    """Of a logistic probe on frozen features."""
    features = [
        encoder.features(
            normalise(
                torch.from_numpy(images).permute(0, 3, 1, 2), encoder.data.mean, encoder.data.std
            ),
            1,
        )[:, 0].numpy()
        for images, _ in (train, test)
    ]
    scaler = StandardScaler().fit(features[0])
    probe = LogisticRegression(C=0.1, max_iter=300).fit(scaler.transform(features[0]), train[1])
    return probe.predict(scaler.transform(features[1])) == test[1]


def test_the_trained_encoder_beats_its_random_initialisation(tmp_path):
    write_gratings(tmp_path / "images", "train", 2000, seed=0)
    shard(str(tmp_path / "images"), tmp_path / "shards", runtime=Runtime(workers=1))
    recipe = load_recipe(
        "cifar10",
        [
            "data.crop_scale=[0.6, 1.0]",
            "data.flip=false",
            "data.batch_size=32",
            "encoder.arch=64x2x4",
            "predictor.dim=32",
            "predictor.depth=1",
            "optimization.epochs=4",
            "optimization.warmup_epochs=0.5",
            "optimization.lr=2e-3",
            "optimization.ema=[0.98, 1.0]",
        ],
    )
    pretrain(tmp_path / "shards", tmp_path / "run", recipe, CPU)
    train, test = gratings(2000, seed=2), gratings(2000, seed=3)
    trained = accuracy(load_encoder(str(tmp_path / "run")), train, test)
    initial = accuracy(load_encoder(f"random:{tmp_path / 'run'}"), train, test)
    difference = trained.astype(float) - initial
    z = difference.mean() / difference.std() * np.sqrt(len(difference))
    assert z > 4, f"{initial.mean():.3f} -> {trained.mean():.3f}"


def test_how_often_a_run_is_watched_and_saved_may_change_while_it_goes_on(
    run, shards, tiny_config, tmp_path
):
    """It leaves the weights as they are, and so is not part of what was asked for."""
    watch = tiny_config.watch.model_copy(update={"every_steps": 7, "grad_norm_steps": 3})
    other = tiny_config.model_copy(
        update={"watch": watch, "checkpoint_epochs": 2, "stream": StreamConfig(buffer=5)}
    )
    assert pretrain(shards, run, other, CPU).cached
    pretrain(shards, tmp_path / "again", other, CPU)
    states = [load_checkpoint(out / "checkpoints" / "last.pt") for out in (run, tmp_path / "again")]
    assert all(
        (states[1]["model"][name] == value).all() for name, value in states[0]["model"].items()
    )
    limits = tiny_config.watch.model_copy(update={"rollbacks": 3})
    with pytest.raises(IjepaError, match=r"watch\.rollbacks was 0, now 3\. "):
        pretrain(shards, run, other.model_copy(update={"watch": limits}), CPU)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_step_at_hand_as_a_schedulers_signal_does(
    run, shards, tiny_config, tmp_path, asked
):
    out = tmp_path / "tiny"

    def ask(task, done, *_):
        if task == "pretrain images" and done == 256:
            os.kill(os.getpid(), asked)

    with pytest.raises(StoppedError, match=f"Stopped by {asked.name} after step 9 of 16"):
        pretrain(shards, out, tiny_config, CPU, ask)
    pretrain(shards, out, tiny_config, CPU)
    assert (out / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_a_signal_after_the_last_step_leaves_a_finished_run(
    shards, tiny_config, tmp_path, monkeypatch
):
    publish = Work.publish

    def publish_while_asked_to_stop(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return publish(*arguments)

    def ask(task, done, *_):
        if done == 512:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Work, "publish", publish_while_asked_to_stop)
    assert pretrain(shards, tmp_path / "tiny", tiny_config, CPU, ask).steps == 16
    assert pretrain(shards, tmp_path / "tiny", tiny_config, CPU).cached
