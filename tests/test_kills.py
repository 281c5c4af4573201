"""Stages killed at random moments come to the same result, and leave nothing else behind."""

import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ijepa.config import ExtractConfig, ProbeConfig, Runtime
from ijepa.recipes import load_recipe
from ijepa.weights import load_checkpoint

KILLS = 12  # a stage; each at a moment drawn from the time that the stage takes undisturbed
CPU = Runtime(device="cpu", workers=0, checkpoint_seconds=1e-3)  # a checkpoint every step


def run_stage(name, folder, out):
    """One stage on the images and shards in `folder`."""
    if name == "shard":
        from ijepa.shard import shard

        shard(str(folder / "images"), out, runtime=Runtime(workers=1))
    elif name == "pretrain":
        from ijepa.pretrain import pretrain

        pretrain(folder / "shards", out, load_recipe(str(folder / "tiny.yaml")), CPU)
    elif name == "extract":
        from ijepa.extract import extract

        choice = ExtractConfig(encoder=str(folder / "run"), views=4, augment="rrc-flip")
        extract(folder / "shards", out, choice, CPU)
    else:
        from ijepa.probe import FeaturePair, probe

        pair = FeaturePair(folder / "train.h5", folder / "val.h5")
        probe(pair, [], out, ProbeConfig(name="linear"), CPU)


def main(name, folder, seed=0):
    """Run a stage undisturbed, then kill it again and again until it is left to end.

    The stage runs in forks of this process, which has imported all that it needs.
    """
    import ijepa.extract
    import ijepa.pretrain
    import ijepa.probe
    import ijepa.shard
    import ijepa.train.loop  # noqa: F401 (forked children find it imported)

    torch.set_num_threads(1)
    folder = Path(folder)
    forks, rng = multiprocessing.get_context("fork"), random.Random(seed)
    quiet, stormy = folder / name / "quiet", folder / name / "stormy"
    start = time.monotonic()
    undisturbed = forks.Process(target=run_stage, args=(name, folder, quiet / "out"))
    undisturbed.start()
    undisturbed.join()
    seconds, kills = time.monotonic() - start, 0
    for _ in range(KILLS):
        victim = forks.Process(target=run_stage, args=(name, folder, stormy / "out"))
        victim.start()
        victim.join(rng.uniform(0, seconds) / (1 if rng.random() < 0.5 else 4))
        kills += victim.exitcode is None
        victim.kill()
        victim.join()
    last = forks.Process(target=run_stage, args=(name, folder, stormy / "out"))
    last.start()
    last.join()
    codes = [undisturbed.exitcode, last.exitcode]
    sys.stdout.write(json.dumps({"kills": kills, "codes": codes}))


def contents(folder):
    """What stands there by name; nothing of records and logs, which tell the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or "tensorboard" in name:
            continue
        if path.suffix == ".pt":
            model = load_checkpoint(path).model
            found[name] = {key: value.numpy().tobytes() for key, value in model.items()}
        else:
            found[name] = None if path.name.endswith("stage.json") else path.read_bytes()
    return found


@pytest.fixture(scope="module")
def material(shards, run, tmp_path_factory):
    """Images, shards, a recipe, a run and its features."""
    from ijepa.extract import extract

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
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["codes"] == [0, 0], done.stderr
    assert told["kills"] >= 2
    quiet, stormy = (contents(material / name / kind) for kind in ("quiet", "stormy"))
    assert stormy.keys() == quiet.keys()
    assert [path for path in quiet if stormy[path] != quiet[path]] == []
