"""A run is tracked elsewhere too, offline, and is the same run with or without it."""

import json
import logging
import signal
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest
from runs import CPU, EAGER, ask_at, metrics_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import together

from ijepa.config import FinetuneConfig
from ijepa.errors import IjepaError, StoppedError
from ijepa.files import LAST, read_metrics
from ijepa.finetune import finetune
from ijepa.pretrain import pretrain
from ijepa.train import loop


@pytest.fixture
def stub(monkeypatch):
    """In place of trackio: what was called, in order; raises in what `breaks` names."""
    module = ModuleType("trackio")
    module.__spec__ = ModuleSpec("trackio", None)
    module.calls, module.breaks = [], ""

    def called(name):
        def call(*given, **named):
            module.calls.append((name, given, named))
            if name == module.breaks:
                raise ConnectionError("no\nroute")

        return call

    for name in ("init", "log", "finish"):
        setattr(module, name, called(name))
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setenv("TRACKIO_DIR", "unused")  # so that it is put back
    return module


def tracked(kind, runtime=CPU):
    return runtime.model_copy(update={"track": kind})


def stopped_and_resumed(shards, out, config, kind):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "FETCH_STEPS", 2)
        with pytest.raises(StoppedError):
            pretrain(shards, out, config, tracked(kind, EAGER), ask_at(signal.SIGTERM, 6 * 32))
        return pretrain(shards, out, config, tracked(kind))


def test_a_tracker_gets_settings_and_numbers_and_changes_none(
    stub, run, shards, tiny_config, tmp_path
):
    pretrain(shards, tmp_path / "a", tiny_config, tracked("trackio"))
    assert metrics_of(tmp_path / "a") == metrics_of(run)
    (first, _, settings), *logged, (last, _, _) = stub.calls
    assert (first, last) == ("init", "finish")
    assert settings["project"] == "ijepa"
    assert settings["name"].startswith("a-")
    assert settings["resume"] == "allow"
    assert settings["config"] == tiny_config.model_dump(mode="json")
    numbers = {}
    for _, (given,), named in logged:
        numbers.setdefault(named["step"], {}).update(given)
    records = {record["step"]: record for record in read_metrics(run / "metrics.jsonl")}
    assert numbers[16]["loss"] == records[16]["loss"]
    assert numbers[16]["rankme"] == records[16]["rankme"]
    assert "images_per_second" in numbers[16]


def test_a_run_that_goes_on_continues_the_tracked_run(
    stub, run, shards, tiny_config, tmp_path, caplog
):
    stopped_and_resumed(shards, tmp_path / "a", tiny_config, "trackio")
    begun = [named["name"] for name, _, named in stub.calls if name == "init"]
    assert len(begun) == 2
    assert len(set(begun)) == 1
    assert metrics_of(tmp_path / "a") == metrics_of(run)
    (tmp_path / "a" / "tracking" / "synced").write_text("by the tracker's own tools")
    (tmp_path / "a" / "tracking" / "key").unlink()
    assert pretrain(shards, tmp_path / "a", tiny_config, tracked("trackio")).cached
    assert "--track has no effect" in caplog.text
    assert pretrain(shards, tmp_path / "a", tiny_config, CPU).cached


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    stub, run, shards, tmp_path, caplog, where
):
    stub.breaks = where
    choice = FinetuneConfig(encoder=str(run), epochs=1, batch_size=64)
    finetune(shards, tmp_path / "a", choice, tracked("trackio"))
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 4
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [line for line in told if "trackio" in line] == [
        "trackio failed and is left out from here (ConnectionError: no route); metrics.jsonl has "
        "every number."
    ]
    assert [name for name, *_ in stub.calls].count(where) == 1


def test_a_tracker_that_is_not_installed_is_one_line(shards, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    expected = r"^--track wandb needs wandb; install it with pip install wandb\.$"
    with pytest.raises(IjepaError, match=expected):
        pretrain(shards, tmp_path / "a", tiny_config, tracked("wandb"))
    assert not any(tmp_path.iterdir())  # no partial run, which would refuse other settings


@pytest.mark.slow
def test_mlflow_has_one_run_with_settings_and_every_shown_step(
    run, shards, tiny_config, tmp_path, monkeypatch
):
    mlflow = pytest.importorskip("mlflow")  # of extras mlflow and dev
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stopped_and_resumed(shards, tmp_path / "a", tiny_config, "mlflow")
    assert metrics_of(tmp_path / "a") == metrics_of(run)
    store = (tmp_path / "a" / "tracking" / "mlruns").as_uri()
    client = mlflow.MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("ijepa").experiment_id
    [found] = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    assert json.loads(found.data.params["encoder.arch"]) == "32x2x2"
    records = {record["step"]: record for record in read_metrics(run / "metrics.jsonl")}
    history = client.get_metric_history(found.info.run_id, "loss")
    assert {point.step for point in history} >= {6, 16}
    assert all(point.value == records[point.step]["loss"] for point in history)


@pytest.mark.slow
def test_wandb_is_offline_and_goes_on_under_one_number(
    run, shards, tiny_config, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")  # of extras wandb and dev
    monkeypatch.delenv("WANDB_MODE", raising=False)
    stopped_and_resumed(shards, tmp_path / "a", tiny_config, "wandb")
    assert metrics_of(tmp_path / "a") == metrics_of(run)
    key = (tmp_path / "a" / "tracking" / "key").read_text()
    files = sorted((tmp_path / "a" / "tracking" / "wandb").glob(f"offline-run-*/run-{key}.wandb"))
    assert len(files) == 2
    assert all(b"loss" in file.read_bytes() for file in files)


@pytest.mark.slow
def test_trackio_keeps_a_run_in_files_beside_it(shards, tiny_config, tmp_path, monkeypatch):
    if find_spec("trackio") is None:  # importing it here would settle where it writes
        pytest.skip("trackio is not installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    pretrain(shards, tmp_path / "a", tiny_config, tracked("trackio"))
    assert any((tmp_path / "a" / "tracking" / "trackio").iterdir())


@pytest.mark.slow
def test_of_several_processes_rank_0_alone_tracks(run, shards, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")  # of extras mlflow and dev
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the client here
    words = ["pretrain", "--recipe", run / "config.yaml", "--data", shards, "--device", "cpu"]
    words += ["--workers", "0", "--track", "mlflow", "--out", tmp_path / "two"]
    codes, errors = together(2, words)
    assert codes == [0, 0], errors
    assert (tmp_path / "two" / LAST).exists()
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "two" / "tracking" / "mlruns").as_uri())
    assert len(client.search_runs([client.get_experiment_by_name("ijepa").experiment_id])) == 1


def test_tensorboard_has_pictures_of_health_checks_which_change_no_number(
    run, shards, tiny_config, tmp_path
):
    without = CPU.model_copy(update={"pictures": False})
    pretrain(shards, tmp_path / "a", tiny_config, without)
    assert metrics_of(tmp_path / "a") == metrics_of(run)
    boards = [
        EventAccumulator(str(one / "tensorboard"), {"images": 0}) for one in (run, tmp_path / "a")
    ]
    with_them, without_them = (board.Reload() for board in boards)
    assert without_them.Tags()["images"] == []
    assert set(with_them.Tags()["images"]) == {"masks", "components", "neighbours"}
    shown = with_them.Images("components")
    assert [picture.step for picture in shown] == [0, 5, 10, 15, 16]
    side = tiny_config.data.image_px
    assert (shown[0].height, shown[0].width) == (4 * side, 2 * side)
    assert len({picture.encoded_image_string for picture in shown}) > 1
    masks = with_them.Images("masks")
    assert (masks[0].height, masks[0].width) == (4 * side, 6 * side)
    assert len({picture.encoded_image_string for picture in masks}) == 1
