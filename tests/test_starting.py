"""Runs that start from given weights, and finished runs that go on for more epochs."""

import shutil

import pytest
import torch
from runs import CPU, changed, metrics_of
from typer.testing import CliRunner

from ijepa.config import ConvertConfig
from ijepa.convert import convert
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError
from ijepa.files import LAST
from ijepa.pretrain import pretrain
from ijepa.recipes import load_recipe
from ijepa.records import read_record
from ijepa.weights import load_checkpoint
from ijepa_cli.main import app

HELD = ["--recipe", "HELD.yaml", "--prolong", "HELD"]
LONGER = ["--set", "optimization.epochs=3"]


def optimized(config, **settings):
    return changed(config, *(f"optimization.{name}={value}" for name, value in settings.items()))


@pytest.fixture(scope="module")
def still(tiny_config):
    """One epoch in which no weight moves, so that the end shows the start."""
    rates = {"lr": 1e-30, "start_lr": 1e-30, "final_lr": 1e-30}
    return optimized(tiny_config, epochs=1, ema=[1.0, 1.0], weight_decay=0.0,
                     final_weight_decay=0.0, **rates)  # fmt: skip


@pytest.mark.parametrize("form", ["run", "checkpoint", "published"])
def test_a_run_starts_from_the_networks_of_given_weights(run, shards, still, tmp_path, form):
    init = run if form == "run" else run / LAST
    if form == "published":
        init = tmp_path / "published.pth.tar"
        convert(run, init, ConvertConfig(to="published"))
    pretrain(shards, tmp_path / "new", still, CPU, init=init)
    given, found = (load_checkpoint(folder / LAST)["model"] for folder in (run, tmp_path / "new"))
    assert given.keys() == found.keys()
    assert all(torch.equal(given[name], found[name]) for name in given)


def test_both_encoders_start_from_weights_of_one_and_the_predictor_is_random(
    run, shards, still, tmp_path, caplog
):
    init = tmp_path / "target.safetensors"
    networks = load_checkpoint(run / LAST)["model"]
    from safetensors.torch import save_file

    save_file({k.removeprefix("target_encoder."): v.clone() for k, v in networks.items()
               if k.startswith("target_encoder.")}, init)  # fmt: skip
    pretrain(shards, tmp_path / "new", still, CPU, init=init)
    found = load_checkpoint(tmp_path / "new" / LAST)["model"]
    name = "blocks.1.mlp.fc2.weight"
    assert torch.equal(found[f"encoder.{name}"], networks[f"target_encoder.{name}"])
    assert torch.equal(found[f"target_encoder.{name}"], networks[f"target_encoder.{name}"])
    assert "The predictor starts from random weights" in caplog.text


def test_the_start_is_part_of_what_a_run_is(run, shards, still, tmp_path):
    out = tmp_path / "new"
    pretrain(shards, out, still, CPU, init=run)
    assert pretrain(shards, out, still, CPU, init=run).cached
    with pytest.raises(IjepaError, match="init is left out"):
        pretrain(shards, out, still, CPU)
    assert read_record(out)["init"] == str(run)
    again = load_recipe(str(out / "config.yaml"))
    with pytest.raises(IjepaError, match="name them with --init, or set init=null"):
        pretrain(shards, tmp_path / "other", again, CPU)
    provenances = [load_encoder(str(folder)).provenance for folder in (out, run)]
    assert provenances[0].settings["init"]
    assert provenances[0].family != provenances[1].family


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init", "nowhere"], "There are no weights nowhere for --init"),
        (["--init", "RUN", "--prolong", "RUN"], "choose one of them"),
        (["--init", "RUN", "--set", "encoder.arch=64x2x2"], "it is 32x2x2, not 64x2x2"),
        (["--prolong", "SHARDS"], "is no finished run of `ijepa pretrain`"),
        # First what no other option would mend, then what is to be given, then what is not.
        (["--prolong", "RUN"], "EMA momentum depends on the number of epochs from step 2 on"),
        (["--prolong", "RUN", "--set", "seed=3"], "EMA momentum depends on the number of epochs"),
        ([*HELD, "--set", "seed=3"], "has 2 epochs; prolong it to more"),
        ([*HELD, *LONGER, "--set", "seed=3"], "seed was 0, now 3"),
        ([*HELD, *LONGER, "--set", "watch.num_images=9"], "watch.num_images was 32, now 9"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_from_is_refused_in_one_line(
    run, shards, held_runs, tmp_path, words, message
):
    held = held_runs[0] / "short"
    meant = {"RUN": run, "SHARDS": shards, "HELD": held, "HELD.yaml": held / "config.yaml"}
    words = [str(meant.get(word, word)) for word in words]
    command = ["pretrain", "--recipe", str(run / "config.yaml"), "--data", str(shards)]
    command += ["--out", str(tmp_path / "new"), "--device", "cpu", "--workers", "0", *words]
    failed = CliRunner().invoke(app, command).exception
    assert isinstance(failed, IjepaError)
    assert message in str(failed)
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def held_runs(shards, tiny_config, tmp_path_factory):
    """Folder of a run of two epochs and one of three, and their configurations."""
    folder = tmp_path_factory.mktemp("held")
    held = {"schedule": "hold-then-cool", "cool_fraction": 0.4, "ema": [0.99, 0.99]}
    short = optimized(tiny_config, **held, epochs=2)
    long = optimized(short, epochs=3)
    pretrain(shards, folder / "short", short, CPU)
    pretrain(shards, folder / "whole", long, CPU)
    return folder, short, long


@pytest.mark.parametrize("in_place", [False, True])
def test_a_run_of_a_held_schedule_goes_on_as_if_it_had_been_longer(
    held_runs, shards, tmp_path, in_place
):
    folder, short, long = held_runs
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    out = tmp_path / ("short" if in_place else "long")
    steps = []

    def count(task, done, *_):
        steps.append(done)

    shorter = tmp_path / "short"
    assert not pretrain(shards, out, long, CPU, count, prolong=shorter).cached
    assert min(steps) == 8 * 32  # the first epoch was not trained again
    whole = tmp_path / "whole"
    assert metrics_of(out) == metrics_of(whole)
    ours, theirs = (load_checkpoint(folder / LAST)["model"] for folder in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "checkpoints").iterdir()}
    assert pretrain(shards, out, long, CPU, prolong=shorter).cached
    if not in_place:
        assert pretrain(shards, tmp_path / "short", short, CPU).cached


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("metrics.jsonl", ('"loss": 0', '"loss": 9'), "metrics.jsonl was changed or damaged"),
        (  # of a version of ijepa that had such a setting
            "stage.json",
            ('"watch": {', '"watch": {"rollbacks": 2, '),
            r"short: watch\.rollbacks is not a known setting",
        ),
    ],
)
def test_a_run_that_was_damaged_or_made_by_another_version_is_not_gone_on_with(
    held_runs, shards, tmp_path, name, changes, message
):
    folder, _, long = held_runs
    shutil.copytree(folder / "short", tmp_path / "short")
    path = tmp_path / "short" / name
    path.write_text(path.read_text().replace(*changes, 1))
    with pytest.raises(IjepaError, match=message):
        pretrain(shards, tmp_path / "long", long, CPU, prolong=tmp_path / "short")
    assert not (tmp_path / "long").exists()
