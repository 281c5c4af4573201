"""Pretraining: exact resume, loud failure, and learning."""

import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from gratings import gratings, write_gratings
from runs import CPU, EAGER, StopError, ask_at, changed, losses, metrics_of, stop_at
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ijepa import compute
from ijepa.config import Runtime, architecture
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError, StoppedError
from ijepa.files import LAST, read_metrics
from ijepa.jepa.augment import normalise
from ijepa.jepa.flops import plan_training
from ijepa.jepa.step import Trainer
from ijepa.pretrain import plan_pretrain, pretrain
from ijepa.recipes import load_recipe
from ijepa.records import read_record
from ijepa.report import report
from ijepa.shard import shard
from ijepa.stage import Work
from ijepa.train import loop
from ijepa.train.pretraining import PretrainTask
from ijepa.weights import load_checkpoint
from ijepa_cli.main import main

UNIT = "pretrain images"


def test_a_run_leaves_config_checkpoints_tensorboard_and_each_step_once(run, tiny_config):
    assert load_recipe(str(run / "config.yaml")) == tiny_config
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"last.pt", "best.pt", "epoch-0001.pt", "epoch-0002.pt"}
    assert list((run / "tensorboard").glob("events.*"))
    assert json.loads((run / "stage.json").read_text())["stage"] == "pretrain"
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(17))
    assert [r["step"] for r in records if "rankme" in r] == [0, 5, 10, 15, 16]
    assert all(np.isfinite(list(record.values())).all() for record in records)


def test_the_speed_shown_is_of_the_steps_since_it_was_last_shown(
    shards, tiny_config, tmp_path, monkeypatch
):
    """A step takes a second here. After the 8 steps of an epoch a checkpoint is kept."""
    clock, told, step = [0.0], [], PretrainTask.step

    def second_long(*words):
        clock[0] += 1.0
        return step(*words)

    monkeypatch.setattr(PretrainTask, "step", second_long)
    monkeypatch.setattr(PretrainTask, "speed", lambda _, per_second: {"rate": per_second})
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    config = changed(tiny_config, "watch.keep_best=false")
    pretrain(shards, tmp_path / "run", config, CPU, lambda *words: told.append(words))
    shown = [(done // 32, values["rate"]) for _, done, _, values in told if "rate" in values]
    assert shown == [(step, 32.0) for step in (8, 10, 16)]


def test_a_second_run_is_cached_and_another_never_replaces_it_unforced(run, shards, tiny_config):
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    with pytest.raises(IjepaError, match=r"seed was 0, now 7\. .* --force"):
        pretrain(shards, run, changed(tiny_config, "seed=7"), CPU)
    assert pretrain(shards, run, tiny_config, CPU).cached
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_on_a_gpu_trains_as_fp32_on_a_cpu_within_its_precision(
    run, shards, tiny_config, tmp_path
):
    pretrain(shards, tmp_path / "gpu", tiny_config, Runtime(device="cuda", workers=0))
    np.testing.assert_allclose(losses(tmp_path / "gpu"), losses(run), rtol=0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(
    run, shards, tiny_config, tmp_path, workers
):
    out, runtime = tmp_path / "tiny", EAGER.model_copy(update={"workers": workers})
    with pytest.raises(StopError):
        pretrain(shards, out, tiny_config, runtime, stop_at(320, UNIT))
    assert not out.exists()
    report([out], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text().replace("<wbr>", "")
    assert f"<dd>{read_record(run)['source']}</dd>" in page
    assert not pretrain(shards, out, tiny_config, CPU).cached
    assert metrics_of(out) == metrics_of(run)
    ours, theirs = (load_checkpoint(folder / LAST)["model"] for folder in (out, run))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_run_killed_with_kill_9_goes_on_exactly(run, shards, tiny_config, tmp_path):
    out = tmp_path / "tiny"
    words = ["pretrain", "--recipe", run / "config.yaml", "--data", shards, "--out", out]
    words += ["--device", "cpu", "--workers", "0"]
    script = (
        "import os, signal, sys, torch; torch.set_num_threads(1)\n"
        "from ijepa.train import loop\n"
        "link = loop.link_or_copy\n"
        "def link_and_die(source, path):\n"
        "    link(source, path)\n"
        "    if path.name == 'last.pt': os.kill(os.getpid(), signal.SIGKILL)\n"
        "loop.link_or_copy = link_and_die\n"
        "from ijepa_cli.main import main; main()\n"
    )
    died = subprocess.run([sys.executable, "-c", script, *map(str, words)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "tiny.partial" / LAST).exists()
    pretrain(shards, out, tiny_config, CPU)
    assert metrics_of(out) == metrics_of(run)


@pytest.mark.parametrize("how", [{"cache": "decoded"}, {"recompute": True}, {"micro_batch": 12}])
def test_how_a_run_is_computed_changes_it_by_rounding_only(
    run, shards, tiny_config, tmp_path, monkeypatch, how
):
    again = Mock(wraps=compute.checkpoint)
    monkeypatch.setattr(compute, "checkpoint", again)
    pretrain(shards, tmp_path / "other", tiny_config, CPU.model_copy(update=how))
    trained = architecture(tiny_config.encoder.arch).depth + tiny_config.predictor.depth
    recomputed = {call.args[0] for call in again.call_args_list}
    assert len(recomputed) == (trained if "recompute" in how else 0)
    rtol = 2e-3 if "cache" in how else 1e-4
    np.testing.assert_allclose(losses(tmp_path / "other"), losses(run), rtol=rtol)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (None, "no readable file of weights"),
        (lambda body: body.pop("optimizer"), r"lacks a part .*optimizer"),
        (
            lambda body: body["model"].update({"encoder.norm.weight": torch.ones(64)}),
            r"another architecture: encoder\..* expected \(",
        ),
    ],
)
def test_a_checkpoint_that_does_not_load_stops_the_run(
    shards, tiny_config, tmp_path, spoil, message
):
    last = tmp_path / "tiny.partial" / LAST
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "tiny", tiny_config, EAGER, stop_at(320, UNIT))
    body = torch.load(last, weights_only=True)
    if spoil:
        spoil(body)
        torch.save(body, last)
    else:
        last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(IjepaError, match=message):
        pretrain(shards, tmp_path / "tiny", tiny_config, CPU)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimization.lr=1e9", "optimization.start_lr=1e9", "watch.loss_limit=1e9"],
            r"not finite at step \d+|loss is (nan|inf) at step \d+",
        ),
        (["data.batch_size=500"], "256 images, fewer than one batch of 500"),
        (["encoder.patch_px=16"], "do not fit a grid of 2x2"),
        (["watch.label=colour"], "no label 'colour'; its labels are: class"),
    ],
)
def test_what_cannot_be_trained_is_refused(shards, tiny_config, tmp_path, overrides, message):
    with pytest.raises(IjepaError, match=message):
        pretrain(shards, tmp_path / "run", changed(tiny_config, *overrides), CPU)
    assert not (tmp_path / "run").exists()


def test_one_image_alone_is_refused_for_nothing_can_be_compared_with_it(tiny_config, tmp_path):
    write_gratings(tmp_path, "images", 1, seed=0)
    shard(tmp_path / "images", tmp_path / "shards")
    with pytest.raises(IjepaError, match="holds 1 image"):
        pretrain(
            tmp_path / "shards", tmp_path / "run", changed(tiny_config, "data.batch_size=1"), CPU
        )


@pytest.fixture
def broken_batches(monkeypatch):
    """Numbers of batches whose images are not numbers."""
    broken, prepare = set(), PretrainTask.prepare

    def prepare_some_broken(task, batch):
        images, *masks = prepare(task, batch)
        return images * (np.nan if batch.step in broken else 1), *masks

    monkeypatch.setattr(PretrainTask, "prepare", prepare_some_broken)
    return broken


def test_a_broken_batch_stops_the_run_and_names_its_images_and_the_last_good_state(
    shards, tiny_config, tmp_path, broken_batches
):
    broken_batches.add(9)  # with a checkpoint after step 8
    broken = r"not finite at step \d+ \(images .*last good state is .*last\.pt\. Lower opt"
    with pytest.raises(IjepaError, match=broken):
        pretrain(shards, tmp_path / "run", tiny_config, CPU)
    assert load_checkpoint(tmp_path / "run.partial" / LAST)["step"] == 8
    with pytest.raises(IjepaError, match="not finite"):  # nor does starting again help
        pretrain(shards, tmp_path / "run", tiny_config, CPU)
    report([tmp_path / "run"], tmp_path / "page.html")
    how = r"ended before it was finished\.</b> Step 9 of 16 \(56%\)\. .* not finite at step \d+"
    assert re.search(how, (tmp_path / "page.html").read_text())
    broken_batches.clear()
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "run", tiny_config, CPU, stop_at(9 * 32, "pretrain"))
    report([tmp_path / "run"], tmp_path / "page.html")
    assert "is not finished.</b> Step " in (tmp_path / "page.html").read_text()


def test_a_gpu_without_enough_memory_is_one_line_that_says_what_needs_less(
    run, shards, tmp_path, monkeypatch, capsys
):
    told = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
    monkeypatch.setattr(Trainer, "step", Mock(side_effect=torch.OutOfMemoryError(told)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # that of `main` would outlive this test
    words = ["pretrain", "--recipe", run / "config.yaml", "--data", shards, "--device", "cpu"]
    words += ["--out", tmp_path / "run", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["ijepa", *map(str, words)])
    with pytest.raises(SystemExit, match="1"):
        main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match("error: CUDA out of memory. Tried .* 2.00 GiB. Less .* --micro-batch N", last)


def test_weights_that_are_not_finite_are_never_saved(shards, tiny_config, tmp_path, monkeypatch):
    step = Trainer.step

    def overflow(trainer, number, *inputs, **options):
        outcome = step(trainer, number, *inputs, **options)
        if number == trainer.schedules.steps_per_epoch - 1:  # no loss after it that could tell
            trainer.model.predictor.mask_token.data.fill_(np.inf)
        return outcome

    monkeypatch.setattr(Trainer, "step", overflow)
    with pytest.raises(IjepaError, match="The weights are no longer finite at step"):
        pretrain(shards, tmp_path / "run", changed(tiny_config, "watch.keep_best=false"), CPU)
    assert not (tmp_path / "run.partial" / LAST).exists()


def test_the_plan_counts_what_the_run_does(run, shards, tiny_config):
    plan, last = plan_pretrain(shards, tiny_config), read_metrics(run / "metrics.jsonl")[-1]
    assert (plan.steps, plan.images_seen) == (last["step"], last["images"])
    weights = load_checkpoint(run / LAST)["model"].items()
    trained = [w for name, w in weights if name.startswith("encoder.") and "pos" not in name]
    assert plan.encoder_parameters == sum(weight.numel() for weight in trained)


def test_the_plan_knows_contexts_that_are_cut_to_one_length(tiny_config):
    held = plan_training(256, changed(tiny_config, "masks.context_patches=24"), CPU, on_gpu=False)
    assert held.context_patches == held.largest_context == 24


def test_the_plan_is_of_one_of_the_processes_that_share_a_batch(shards, tiny_config, monkeypatch):
    alone = plan_pretrain(shards, tiny_config, CPU)
    torchruns = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}
    torchruns |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in torchruns.items():
        monkeypatch.setenv(name, str(value))
    shared = plan_pretrain(shards, tiny_config, CPU)
    assert shared.images_at_a_time == alone.images_at_a_time / 4
    assert shared.memory_gb < alone.memory_gb
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(IjepaError, match="cannot be shared evenly by 5 processes"):
        plan_pretrain(shards, tiny_config, CPU)


def accuracy(encoder, train, test):
    """Of a logistic probe on frozen features."""
    cuts, features = encoder.data, []
    for images, _ in (train, test):
        pixels = normalise(torch.from_numpy(images).permute(0, 3, 1, 2), cuts.mean, cuts.std)
        features.append(encoder.features(pixels, 1)[:, 0].numpy())
    scaler = StandardScaler().fit(features[0])
    probe = LogisticRegression(C=0.1, max_iter=300).fit(scaler.transform(features[0]), train[1])
    return probe.predict(scaler.transform(features[1])) == test[1]


def test_the_trained_encoder_beats_its_random_initialisation(tmp_path):
    write_gratings(tmp_path / "images", "train", 2000, seed=0)
    shard(str(tmp_path / "images"), tmp_path / "shards", runtime=Runtime(workers=1))
    recipe = load_recipe(
        "cifar10",
        ["data.crop_scale=[0.6, 1.0]", "data.flip=false", "data.batch_size=32",
         "encoder.arch=64x2x4", "predictor.dim=32", "predictor.depth=1", "optimization.epochs=4",
         "optimization.warmup_epochs=0.5", "optimization.lr=2e-3", "optimization.ema=[0.98, 1.0]"],
    )  # fmt: skip
    pretrain(tmp_path / "shards", tmp_path / "run", recipe, CPU)
    train, test = gratings(2000, seed=2), gratings(2000, seed=3)
    trained = accuracy(load_encoder(str(tmp_path / "run")), train, test)
    initial = accuracy(load_encoder(f"random:{tmp_path / 'run'}"), train, test)
    difference = trained.astype(float) - initial
    z = difference.mean() / difference.std() * np.sqrt(len(difference))
    assert z > 4, f"{initial.mean():.3f} -> {trained.mean():.3f}"


def test_how_often_a_run_is_watched_and_saved_may_change_but_not_on_which_images(
    run, shards, tiny_config, tmp_path
):
    """It leaves the weights as they are, and so is not part of what was asked for."""
    free = ("watch.every_steps=7", "watch.grad_norm_steps=3", "checkpoint_epochs=2")
    other = changed(tiny_config, *free, "stream.buffer=5")
    assert pretrain(shards, run, other, CPU).cached
    pretrain(shards, tmp_path / "again", other, CPU)
    ours, theirs = (load_checkpoint(out / LAST)["model"] for out in (tmp_path / "again", run))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for fixed, message in (
        ("watch.loss_limit=3", r"watch\.loss_limit was 10\.0, now 3\.0\. "),
        ("watch.num_images=16", r"watch\.num_images was 32, now 16"),
    ):
        with pytest.raises(IjepaError, match=message):
            pretrain(shards, run, changed(other, fixed), CPU)


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_step_at_hand_as_a_schedulers_signal_does(
    run, shards, tiny_config, tmp_path, asked
):
    out = tmp_path / "tiny"
    with pytest.raises(StoppedError, match=f"Stopped by {asked.name} after step 9 of 16"):
        pretrain(shards, out, tiny_config, CPU, ask_at(asked, 256, UNIT))
    pretrain(shards, out, tiny_config, CPU)
    assert metrics_of(out) == metrics_of(run)


def test_a_signal_after_the_last_step_leaves_a_finished_run(
    shards, tiny_config, tmp_path, monkeypatch
):
    publish = Work.publish

    def publish_while_asked_to_stop(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return publish(*arguments)

    monkeypatch.setattr(Work, "publish", publish_while_asked_to_stop)
    ask = ask_at(signal.SIGTERM, 512)
    assert pretrain(shards, tmp_path / "tiny", tiny_config, CPU, ask).steps == 16
    assert pretrain(shards, tmp_path / "tiny", tiny_config, CPU).cached
