"""Stages killed at random moments come to the same result, and leave nothing else behind."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import CPU, EAGER

from ijepa import files
from ijepa.config import ExtractConfig, ProbeConfig, Runtime, ShardConfig
from ijepa.extract import extract
from ijepa.pretrain import pretrain
from ijepa.probe import probe
from ijepa.recipes import load_recipe
from ijepa.shard import shard
from ijepa.weights import load_checkpoint

KILLS = 20  # a stage; each at a moment drawn from the time that the stage takes undisturbed


def run_stage(name, folder, out):
    """One stage on the images and shards in `folder`."""
    if name == "shard":
        several = ShardConfig(shard_bytes=100_000)  # for two workers
        shard(str(folder / "images"), out, several, Runtime(workers=2))
    elif name == "pretrain":
        pretrain(folder / "shards", out, load_recipe(str(folder / "tiny.yaml")), EAGER)
    elif name == "extract":
        choice = ExtractConfig(encoder=str(folder / "run"), views=4, augment="rrc-flip")
        extract(folder / "shards", out, choice, CPU)
    else:
        pair = (folder / "train.h5", folder / "val.h5")
        probe(pair, [], out, ProbeConfig(name="linear"), EAGER)


def start(name, folder, out):
    """A stage in a fork of this process, which has imported all that it needs."""
    stage = multiprocessing.get_context("fork").Process(target=run_stage, args=(name, folder, out))
    stage.start()
    return stage


def exit_code(name, folder, out):
    """Of a stage that is left to end."""
    stage = start(name, folder, out)
    stage.join()
    return stage.exitcode


def children(process):
    """The processes that it has started; none if it has just ended."""
    with contextlib.suppress(FileNotFoundError):
        path = Path(f"/proc/{process}/task/{process}/children")
        return [int(child) for child in path.read_text().split()]
    return []


def send(sent, processes):
    """Send a signal to those that have not ended yet."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, sent)


def main(name, folder, seed=0):
    """Run a stage undisturbed, then kill it 20 times at random moments, then leave it to end.

    A run that ends before it is killed is put aside, and the next one begins anew. Every other time
    the workers of `shard` are held back: they outlive it, and the next run waits for them in vain.
    """
    import ijepa.train.loop  # noqa: F401  # forked children find it imported

    torch.set_num_threads(1)
    rng, quiet, stormy = random.Random(seed), *(Path(folder, name, k) for k in ("quiet", "stormy"))
    folder, out, began = Path(folder), stormy / "out", time.monotonic()
    codes = [exit_code(name, folder, quiet / "out")]
    seconds, kills, refused = time.monotonic() - began, 0, 0
    while kills < KILLS:
        victim = start(name, folder, out)
        victim.join(rng.uniform(0, seconds) / (1 if rng.random() < 0.5 else 4))
        if victim.exitcode is not None:
            codes.append(victim.exitcode)
            stormy.rename(stormy.with_name(f"stormy {len(codes)}"))
            continue
        kills += 1
        workers = children(victim.pid) if kills % 2 else []
        send(signal.SIGSTOP, workers)
        victim.kill()
        victim.join()
        if workers:
            files.ORPHANS_SECONDS = 0.1
            refused += exit_code(name, folder, out) == 1
            files.ORPHANS_SECONDS = 20
        send(signal.SIGCONT, workers)
    codes.append(exit_code(name, folder, out))
    sys.stdout.write(json.dumps({"kills": kills, "refused": refused, "codes": codes}))


def contents(folder):
    """What stands there by name; nothing of records and logs, which tell the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or "tensorboard" in name:
            continue
        if path.suffix == ".pt":
            model = load_checkpoint(path)["model"]
            found[name] = {key: value.numpy().tobytes() for key, value in model.items()}
        else:
            found[name] = None if path.name.endswith("stage.json") else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def material(shards, run, tmp_path_factory):
    """Images, shards, a recipe, a run and its features."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "images").symlink_to(shards.parent / "images")
    (folder / "shards").symlink_to(shards)
    (folder / "run").symlink_to(run)
    (folder / "tiny.yaml").write_bytes((run / "config.yaml").read_bytes())
    for split in ("train", "val"):
        choice = ExtractConfig(encoder=str(run), split=split)
        extract(shards, folder / f"{split}.h5", choice, CPU)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard", "pretrain", "extract", "probe"])
def test_a_stage_killed_at_random_comes_to_the_same_result_and_leaves_nothing(material, name):
    script = "import sys; from test_kills import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(material)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["codes"]) == {0}, done.stderr
    assert told["kills"] == KILLS
    assert (told["refused"] >= 1) == (name == "shard")
    quiet, *others = (contents(folder) for folder in sorted((material / name).iterdir()))
    assert len(others) == len(told["codes"]) - 1
    for stormy in others:
        assert stormy.keys() == quiet.keys()
        assert [path for path in quiet if stormy[path] != quiet[path]] == []
