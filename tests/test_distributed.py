"""Several processes compute what one computes, and end together."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gratings import write_gratings
from pictures import encoded, write_tar
from runs import CPU, EAGER, StopError, changed, losses, metrics_of, start_as, stop_at
from typer.testing import CliRunner

from ijepa.config import DataConfig, ExtractConfig
from ijepa.data.loader import RandomCropBatches, StepPlan
from ijepa.data.shards import open_shards
from ijepa.distributed import World, device_name, pick_device
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.files import BEST, LAST
from ijepa.jepa.masks import batch_masks
from ijepa.pretrain import pretrain
from ijepa.recipes import dump_yaml, load_recipe
from ijepa.weights import load_checkpoint
from ijepa_cli.main import app
from ijepa_cli.slurm import Command, submit

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}


def command(recipe, shards, out, *more):
    words = ["pretrain", "--recipe", recipe, "--data", shards, "--out", out]
    return [*map(str, words), "--device", "cpu", "--workers", "0", *more]


def free_port():
    """One below those that systems hand out: no connection takes it before a slow start does."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


FORKED = """
import json, os, sys
import ijepa.extract, ijepa.finetune, ijepa.train.finetuning, ijepa.train.pretraining  # once
import ijepa_cli.main

script, size, folder, *sys.argv = sys.argv[1:]

def rank(number):
    for stream, name in ((1, os.devnull), (2, f"{folder}/{number}")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": size, "LOCAL_RANK": str(number)}
    sys.argv = ["ijepa", *sys.argv]
    exec(script, {"ijepa_cli": ijepa_cli})

forks = []
for number in range(int(size)):
    forks.append(os.fork())
    if not forks[-1]:
        try:
            rank(number)
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code or 0)
print([os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks])
"""


def together(size, words, script="ijepa_cli.main.main()"):
    """Start the ranks as torchrun would, in forks; what each returned and wrote to stderr.

    Raises:
        subprocess.TimeoutExpired: they hang; nothing of them is left behind.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with tempfile.TemporaryDirectory() as folder:
        parent = subprocess.Popen(
            [sys.executable, "-c", FORKED, script, str(size), folder, *map(str, words)],
            env=ENVIRONMENT | address,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            codes, _ = parent.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(parent.pid, signal.SIGKILL)
        return json.loads(codes), [(Path(folder) / str(n)).read_text() for n in range(size)]


def test_two_processes_of_torchrun_train_as_one(run, shards, tmp_path):
    out = tmp_path / "two"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *torchrun, "-m", "ijepa_cli", *command(run / "config.yaml", shards, out)],
        check=True,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=150,
    )
    np.testing.assert_allclose(losses(out), losses(run), rtol=1e-4)
    ours, theirs = (load_checkpoint(p / LAST) for p in (out, run))
    weight = "encoder.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(ours["model"][weight], theirs["model"][weight], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_rank_0_makes_the_shard_set_of_images_while_the_others_wait(run, tmp_path):
    write_gratings(tmp_path, "images", 96, seed=0)
    words = command(run / "config.yaml", tmp_path / "images", tmp_path / "run")
    codes, errors = together(2, [*words, "--set", "optimization.epochs=1"])
    assert codes == [0, 0], errors
    assert "run.shards made of" in errors[0]
    assert "run.shards" not in errors[1]


@pytest.mark.slow
def test_a_dry_run_of_two_processes_ends_in_order_and_writes_nothing(run, shards, tmp_path):
    words = command(run / "config.yaml", shards, tmp_path / "run")
    codes, errors = together(2, [*words, "--dry-run"])
    assert codes == [0, 0], errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--micro-batch", "5", "--recompute")])
def test_a_run_of_one_process_goes_on_with_two_and_says_so(
    run, shards, tiny_config, tmp_path, more
):
    out = tmp_path / "more"
    with pytest.raises(StopError):
        pretrain(shards, out, tiny_config, EAGER, stop_at(256, "pretrain"))
    codes, errors = together(2, command(run / "config.yaml", shards, out, *more))
    assert codes == [0, 0], errors
    assert "began with 1 processes and goes on with 2" in errors[0]
    assert "began with" not in errors[1]
    np.testing.assert_allclose(losses(out), losses(run), rtol=1e-4)
    ours, theirs = (load_checkpoint(p / LAST) for p in (out, run))
    assert ours["model"].keys() == theirs["model"].keys()
    weight = "target_encoder.blocks.1.mlp.fc2.weight"
    torch.testing.assert_close(ours["model"][weight], theirs["model"][weight], rtol=0, atol=1e-4)
    moments = (
        state["optimizer"]["state"]["predictor.mask_token"]["exp_avg"] for state in (ours, theirs)
    )
    torch.testing.assert_close(*moments, rtol=1e-2, atol=1e-6)
    for name, state in ours["optimizer"]["state"].items():  # copied when it was saved, not later
        assert state["step"] == ours["step"], name
    kept = load_checkpoint(out / "checkpoints" / "epoch-0001.pt")
    assert {float(state["step"]) for state in kept["optimizer"]["state"].values()} == {kept["step"]}


@pytest.mark.slow
def test_processes_that_round_differently_save_the_same_best_state(run, shards, tmp_path):
    """Here each counts neighbours of its own: more with every health check, or always as many."""
    script = (
        "import itertools, os\n"
        "from ijepa.train import watch\n"
        "checks, grows = itertools.count(), os.environ['RANK'] == '0'\n"
        "watch.neighbour_accuracy = lambda *_: next(checks) / 10 if grows else 0.5\n"
        "ijepa_cli.main.main()\n"
    )
    words = command(run / "config.yaml", shards, tmp_path / "run")
    codes, errors = together(2, words, script)
    assert codes == [0, 0], errors
    assert load_checkpoint(tmp_path / "run" / BEST)["step"] == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "settings", "message"),
    [
        ("hot", ["optimization.lr=1e9", "optimization.start_lr=1e9"], "error:"),
        ("taken", [], "no record that ijepa made it"),
    ],
)
def test_what_breaks_or_cannot_be_made_ends_every_process_with_one_error(
    shards, tiny_config, tmp_path, out, settings, message
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(changed(tiny_config, *settings)))
    codes, errors = together(2, command(recipe, shards, tmp_path / out))
    assert codes == [1, 1]
    assert sum(error.count(message) for error in errors) == 1, errors
    assert "Traceback" not in "".join(errors)


ASKS = """
import os
from ijepa.train.pretraining import PretrainTask
step = PretrainTask.step
def step_and_ask(self, number, inputs):
    number == 6 and {}
    return step(self, number, inputs)
PretrainTask.step = step_and_ask
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_is_told_once(run, shards, tmp_path):
    asks = ASKS.format(f"os.environ['RANK'] == '1' and os.kill(os.getpid(), {int(signal.SIGINT)})")
    words = command(run / "config.yaml", shards, tmp_path / "run")
    codes, errors = together(2, words, f"{asks}ijepa_cli.main.main()")
    assert codes == [143, 130], errors
    assert "Stopped by a signal to another process after step" in errors[0]
    assert "Stopped" not in errors[1]


@pytest.mark.slow
@pytest.mark.parametrize(("asks", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_before_the_end_and_the_run_goes_on_exactly(
    run, shards, tiny_config, tmp_path, asks, code
):
    out, recipe = tmp_path / "tiny", run / "config.yaml"
    asked = ASKS.format(f"os.killpg(os.getpgrp(), {int(asks)})")
    arguments = command(recipe, shards, out)
    arguments[arguments.index("--workers") + 1] = "2"  # they get the signal, too
    ended = subprocess.run(
        [sys.executable, "-c", f"{asked}from ijepa_cli.main import main; main()", *arguments],
        env=ENVIRONMENT,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"Stopped by {asks.name} after step 7 of 16, which is saved." in ended.stderr
    pretrain(shards, out, tiny_config, CPU)
    assert metrics_of(out) == metrics_of(run)


@pytest.mark.parametrize("shared", [False, True])
def test_parts_of_a_batch_are_the_batch(shards, shared):
    images = open_shards(shards).split("train")
    config = DataConfig(image_px=32, batch_size=24)
    every = 8 if shared else None
    whole, *parts = (
        RandomCropBatches(images, StepPlan(len(images), config, 0, part, every))[3]
        for part in (None, slice(0, 12), slice(12, 24))
    )
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.numbers for part in parts]), whole.numbers)


def test_shared_draws_repeat_masks_and_crops_as_the_released_code_does(shards):
    config = load_recipe("cifar10", ["shared_draws=true", "masks.group_size=12"])
    groups = batch_masks(config, 5)
    assert [len(masks.context) for masks in groups] == [12, 12, 8]
    assert torch.equal(groups[0].context, groups[1].context)
    assert torch.equal(groups[0].targets[:, :8], groups[2].targets)
    own = batch_masks(config.model_copy(update={"shared_draws": False}), 5)
    assert not torch.equal(own[0].targets, own[1].targets)


STOPPED = """
from ijepa.train.loop import _Run
save = _Run.save
def save_and_stop(run):
    save(run)
    raise SystemExit(7)
_Run.save = save_and_stop
ijepa_cli.main.main()
"""


@pytest.mark.slow
def test_bad_samples_of_a_stream_are_counted_once_whoever_met_them_and_before_or_after_a_stop(
    tiny_config, tmp_path
):
    for number, bad in enumerate(("003.png", "017.png")):
        files = {f"{n:03d}.png": encoded(n, height=32, width=32) for n in range(40)}
        write_tar(tmp_path / f"bad-{number}.tar", files | {bad: b"no image"})
    settings = ["stream.epoch_images=80", "stream.max_bad=9", "stream.lanes=1", "stream.buffer=4"]
    config = changed(tiny_config, *settings, "data.batch_size=8", "watch.num_images=8")
    (tmp_path / "recipe.yaml").write_text(dump_yaml(config))
    whole, halves = (
        command(tmp_path / "recipe.yaml", f"file://{tmp_path}/bad-{{0..1}}.tar", tmp_path / name)
        for name in ("whole", "halves")
    )
    assert together(2, whole)[0] == [0, 0]
    assert together(2, halves, STOPPED)[0] == [7, 7]
    met = load_checkpoint(tmp_path / "halves.partial" / LAST)["facts"]["bad_samples"]
    assert {tuple(one[:3] for one in some) for some in met} == {("003",), ("017",)}
    assert together(2, halves)[0] == [0, 0]
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "halves")
    for name in ("whole", "halves"):
        assert json.loads((tmp_path / name / "stage.json").read_text())["bad_samples"] == 2


@pytest.mark.slow
def test_a_job_of_two_tasks_trains_as_one_process(run, shards, tmp_path, capfd):
    out = tmp_path / "job"
    words = command(run / "config.yaml", shards, out, "--launcher", "local", "--gpus-per-node", "2")
    done = subprocess.run(
        [sys.executable, "-m", "ijepa_cli", *words, "--minutes=5"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"local job done; logs in {out}.submitit" in done.stdout
    np.testing.assert_allclose(losses(out), losses(run), rtol=1e-4)
    assert json.loads((out / "stage.json").read_text())["device"].startswith("2 x cpu")


def test_a_job_resumes_its_command_after_a_time_out_and_does_not_begin_again():
    ours = Command(("pretrain", "--force", "--recipe", "r"))
    assert ours.checkpoint().function == Command(("pretrain", "--recipe", "r"))


def test_a_cluster_that_is_not_there_is_one_line(run, shards, tmp_path):
    words = command(run / "config.yaml", shards, tmp_path / "x", "--launcher", "slurm")
    failed = CliRunner().invoke(app, words).exception
    assert isinstance(failed, IjepaError)
    assert "--launcher slurm" in str(failed)
    assert "\n" not in str(failed)


@pytest.mark.slow
def test_two_processes_extract_the_file_of_one(run, shards, tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    choice = ExtractConfig(encoder=str(run), views=2, augment="flip", tokens=True)
    extract(shards, one, choice, CPU)
    words = ["extract", "--encoder", run, "--data", shards, "--out", two]
    words += ["--views", "2", "--augment", "flip", "--device", "cpu", "--workers", "0", "--tokens"]
    codes, errors = together(2, words)
    assert codes == [0, 0], errors
    assert one.read_bytes() == two.read_bytes()
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"one.h5", "one.h5.stage.json", "two.h5", "two.h5.stage.json"}


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """SLURM's commands: `sbatch` refuses the partition `typo`, and keeps what else it is given."""
    refuse = "grep -q =typo $1 && echo sbatch: invalid partition >&2 && exit 1"
    submitted = f"{refuse}; cp $1 {tmp_path}/sbatch.sh; echo Submitted batch job 7"
    for name, script in (("srun", ""), ("sbatch", submitted)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "sbatch.sh"


def test_a_job_of_slurm_takes_options_of_sbatch_and_ends_when_one_process_fails(sbatch, tmp_path):
    job = (tmp_path / "run", "slurm", 2, 8, 60)
    assert "job 7 submitted" in submit(*job, ["partition=gpu", "reservation=x"])
    script = sbatch.read_text()
    for option in (
        "cpus-per-task=8",
        "gpus-per-node=8",
        "nodes=2",
        "partition=gpu",
        "reservation=x",
    ):
        assert f"#SBATCH --{option}\n" in script
    assert "--kill-on-bad-exit=1" in script
    submit(*job, ["cpus-per-task=3"])
    assert "task=3" in sbatch.read_text()
    assert "task=8" not in sbatch.read_text()
    with pytest.raises(IjepaError, match=r"^--launcher slurm: sbatch: invalid partition$"):
        submit(*job, ["partition=typo"])


@pytest.mark.parametrize(
    ("name", "local_rank", "count", "found"),
    [
        ("cuda", 1, 2, 1),
        ("cuda", 1, 1, 0),  # SLURM may show each task its own GPU alone
        ("cuda:0", 1, 2, 0),
        ("auto", 3, 4, 3),
    ],
)
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, name, local_rank, count, found):
    start_as(monkeypatch, local_rank, 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pick_device(name) == torch.device("cuda", found)


@pytest.mark.parametrize("name", ["cuda:0", "mps"])
def test_several_processes_of_a_machine_cannot_share_one_gpu(monkeypatch, name):
    start_as(monkeypatch, 1, 2, local_size=2)
    with pytest.raises(IjepaError, match=f"^Several processes cannot share {name}; take --device"):
        pick_device(name)


def test_a_gpu_that_is_not_there_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(IjepaError, match="There is no device cuda:2; the machine has 2 CUDA"):
        pick_device("cuda:2")


def test_a_device_is_named_so_that_two_cpus_of_one_name_are_told_apart(monkeypatch, tmp_path):
    facts = tmp_path / "cpuinfo"
    one = "processor : {}\ncpu family : 25\nmodel : 17\nmodel name : AMD EPYC\n"
    facts.write_text("\n".join(one.format(number) for number in range(2)))
    monkeypatch.setattr("ijepa.distributed.CPU_FACTS", facts)
    cpu = f"cpu (AMD EPYC, family 25, model 17), {torch.get_num_threads()} threads"
    assert device_name(torch.device("cpu")) == cpu
    assert device_name(torch.device("cpu"), World(0, 4)) == f"4 x {cpu}"
    facts.write_text("a machine of another kind\n")
    assert device_name(torch.device("cpu")).startswith("cpu (")
