"""Which state of a run is kept and taken: by nearest neighbours of images, held out or not."""

import shutil

import pytest
import torch
from runs import CPU, EAGER, StopError, changed, losses, metrics_of, stop_at
from typer.testing import CliRunner

from ijepa.config import ExtractConfig, ProbeConfig
from ijepa.data.shards import open_shards
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.store import open_features
from ijepa.files import BEST, LAST, read_metrics
from ijepa.jepa.model import build_ijepa
from ijepa.pretrain import pretrain
from ijepa.probe import probe
from ijepa.report import report
from ijepa.shard import shard
from ijepa.train.pretraining import PretrainTask
from ijepa.train.watch import Watch
from ijepa.weights import load_checkpoint
from ijepa_cli.main import app


@pytest.fixture
def scored(monkeypatch):
    """Sets the accuracy that the health check after each step finds."""
    check = Watch.check

    def of(accuracies):
        def told(self, model, step=0, **how):
            return check(self, model, step, **how) | {"neighbour_accuracy": accuracies[step]}

        monkeypatch.setattr(Watch, "check", told)

    return of


def test_the_best_health_check_is_kept_and_the_random_start_is_none(
    shards, tiny_config, tmp_path, scored
):
    scored({0: 0.9, 5: 0.2, 10: 0.6, 15: 0.6, 16: 0.5})
    pretrain(shards, tmp_path / "run", tiny_config, CPU)
    best = load_checkpoint(tmp_path / "run" / BEST)
    assert best["step"] == 10
    assert best["facts"]["best"] == {"step": 10, "neighbour_accuracy": 0.6}
    assert load_checkpoint(tmp_path / "run" / LAST)["step"] == 16


def test_a_resumed_run_keeps_the_best_check_of_both_its_parts(
    shards, tiny_config, tmp_path, scored
):
    scored({0: 0.1, 5: 0.8, 10: 0.6, 15: 0.6, 16: 0.5})
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "run", tiny_config, EAGER, stop_at(10 * 32, "pretrain"))
    pretrain(shards, tmp_path / "run", tiny_config, CPU)
    assert load_checkpoint(tmp_path / "run" / BEST)["step"] == 5


def test_no_best_state_is_kept_where_nobody_asks_or_there_is_no_label(
    shards, tiny_config, tmp_path
):
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted((shards.parent / "images" / "train").rglob("*.png"))):
        shutil.copyfile(path, tmp_path / "flat" / f"{number}.png")
    shard(tmp_path / "flat", tmp_path / "set")
    unasked = changed(tiny_config, "watch.keep_best=false")
    for name, data, config in (("un", shards, unasked), ("blind", tmp_path / "set", tiny_config)):
        pretrain(data, tmp_path / name, config, CPU)
        assert not (tmp_path / name / BEST).exists()
        with pytest.raises(IjepaError, match="has no checkpoint 'best'; there are epoch-0001, "):
            load_encoder(tmp_path / name, checkpoint="best")


def test_features_of_a_chosen_checkpoint_are_those_of_its_file_and_say_so(run, shards, tmp_path):
    kept = run / "checkpoints" / "epoch-0001.pt"
    files = {"last": run, "epoch-0001": kept, "best": run / BEST}
    for name, encoder in files.items():
        taken = ExtractConfig(encoder=run, checkpoint=name, split="val")
        extract(shards, tmp_path / f"{name}.h5", taken, CPU)
        extract(shards, tmp_path / f"{name}-file.h5", ExtractConfig(encoder=encoder, split="val"),
                CPU)  # fmt: skip
        ours, theirs = (open_features(tmp_path / f"{name}{end}.h5") for end in ("", "-file"))
        assert (ours.numpy() == theirs.numpy()).all()
        assert ours.header.provenance == theirs.header.provenance
        state = {"best": "best", "epoch-0001": "step 8 of 16", "last": None}[name]
        assert ours.header.provenance.checkpoint == state
    families = {open_features(tmp_path / f"{n}.h5").header.provenance.family for n in files}
    assert len(families) == 3  # no state is another seed of the last


def test_the_state_of_an_unfinished_run_is_not_taken_for_a_finished_one(
    run, shards, tiny_config, tmp_path
):
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "run", tiny_config, EAGER, stop_at(10 * 32, "pretrain"))
    with pytest.raises(
        IjepaError, match=r"not finished yet; finish it, or name .*run\.partial for"
    ):
        load_encoder(tmp_path / "run")
    going = load_encoder(tmp_path / "run.partial").provenance
    assert going.checkpoint == f"step {going.steps} of 16"
    assert going.family != load_encoder(run).provenance.family


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "bets"], "has no checkpoint 'bets' (did you mean 'best'?)"),
        (["--checkpoint", "../config"], "String should match pattern"),
        (["--encoder", "pixels", "--checkpoint", "best"], "pixels has no checkpoint 'best'"),
        (
            ["--encoder", "random:RUN", "--checkpoint", "best"],
            "leave --checkpoint out",
        ),
        (["--encoder", "pixels", "--which", "context"], "pixels is one encoder; leave --which"),
        (["--encoder", "SHARDS"], "is a shard set, no finished run"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_in_one_line(
    run, shards, tmp_path, words, message
):
    places = {"SHARDS": str(shards), "random:RUN": f"random:{run}"}
    words = [places.get(word, word) for word in words]
    words = words if "--encoder" in words else ["--encoder", str(run), *words]
    out = tmp_path / "features.h5"
    result = CliRunner().invoke(app, ["extract", "--data", str(shards), "--out", str(out), *words])
    assert message in str(result.exception) + result.output
    assert not out.exists()


def test_neighbours_are_counted_of_the_images_whose_class_is_known(shards, tiny_config):
    model, images = build_ijepa(tiny_config), open_shards(shards).split("train")
    known = [images.read_sample(number) for number in range(48)]
    unknown = [images.read_sample(n)._replace(labels={"class": -1}) for n in range(48, 64)]
    here = torch.device("cpu")
    of_all = Watch(tiny_config, [*unknown, *known], here).check(model)
    of_known = Watch(tiny_config, known, here).check(model)
    assert "labelled_images" not in of_known
    assert of_all["neighbour_accuracy"] == of_known["neighbour_accuracy"]
    assert of_all["labelled_images"] == 48
    for few in ([], known[:1]):
        assert "neighbour_accuracy" not in Watch(tiny_config, [*few, *unknown], here).check(model)


def test_held_out_images_are_checked_and_never_trained_on(shards, tiny_config, tmp_path):
    held = changed(tiny_config, "watch.held_out=true", "watch.num_images=64")
    task = PretrainTask(held, open_shards(shards).split("train"), CPU)
    split = open_shards(shards).split("train")
    seen = set()
    for batch in task.batches(range(task.total_steps)):
        seen |= set(batch.numbers.tolist())
    watched = {sample.key for sample in task._watch._samples}
    trained = set(split.keys(sorted(seen)))
    assert len(watched) == 64
    assert not watched & trained
    pretrain(shards, tmp_path / "run", held, CPU)
    assert len(losses(tmp_path / "run")) == 2 * ((len(split) - 64) // 32)
    with pytest.raises(IjepaError, match="num_images was 64, now 32"):
        pretrain(shards, tmp_path / "run", changed(held, "watch.num_images=32"), CPU)
    with pytest.raises(IjepaError, match=r"watch.held_out leaves \d+ of them out"):
        pretrain(shards, tmp_path / "new", changed(held, f"watch.num_images={len(split) - 8}"), CPU)


def test_a_run_with_held_out_images_goes_on_exactly(shards, tiny_config, tmp_path):
    held = changed(tiny_config, "watch.held_out=true", "watch.num_images=64")
    pretrain(shards, tmp_path / "whole", held, CPU)
    with pytest.raises(StopError):
        pretrain(shards, tmp_path / "run", held, EAGER, stop_at(6 * 32, "pretrain"))
    pretrain(shards, tmp_path / "run", held, CPU)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(torch.isfinite(torch.tensor(list(record.values()))).all() for record in records)


def test_the_page_says_how_the_checkpoint_of_a_score_was_chosen(run, shards, tmp_path):
    for split in ("train", "val"):
        taken = ExtractConfig(encoder=run, checkpoint="best", split=split)
        extract(shards, tmp_path / f"{split}.h5", taken, CPU)
    files = tmp_path / "train.h5", tmp_path / "val.h5"
    probe(files, [], tmp_path / "knn.json", ProbeConfig(name="knn"))
    report([tmp_path / "knn.json"], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    step = load_checkpoint(run / BEST)["step"]
    assert f"best.pt (target) after {step} steps, the health check with the best nearest" in text
