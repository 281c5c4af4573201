"""Checkpoints are written in the background, whole, as rarely as they are dear."""

import threading
import time

import pytest
import torch

from ijepa.train import checkpoint
from ijepa.train.checkpoint import CheckpointWriter
from ijepa.weights import load_state


@pytest.fixture
def writer():
    made = CheckpointWriter(60.0)
    yield made
    made.close()


def test_training_may_change_the_tensors_while_they_are_written(writer, tmp_path, monkeypatch):
    go, save = threading.Event(), checkpoint.save_state

    def slow(path, body):
        go.wait(10)
        save(path, body)

    monkeypatch.setattr(checkpoint, "save_state", slow)
    weights = torch.arange(5.0)
    writer.save([tmp_path / "last.pt"], {"model": {"w": weights}, "step": 3})
    assert not (tmp_path / "last.pt").exists()
    weights.fill_(-1)
    go.set()
    writer.wait()
    state = load_state(tmp_path / "last.pt")
    assert torch.equal(state["model"]["w"], torch.arange(5.0))
    assert state["step"] == 3


def test_a_second_checkpoint_reuses_the_copy_and_replaces_the_file_alone(writer, tmp_path):
    kept, last = tmp_path / "epoch-0001.pt", tmp_path / "last.pt"
    writer.save([kept, last], {"w": torch.ones(3)})
    writer.save([last], {"w": torch.zeros(3)})
    writer.wait()
    assert load_state(kept)["w"].tolist() == [1, 1, 1]
    assert load_state(last)["w"].tolist() == [0, 0, 0]


def test_one_state_under_two_names_is_written_once(writer, tmp_path, monkeypatch):
    written, save = [], checkpoint.save_state
    monkeypatch.setattr(
        checkpoint, "save_state", lambda path, body: (written.append(path), save(path, body))
    )
    paths = [tmp_path / "epoch-0001.pt", tmp_path / "last.pt"]
    writer.save(paths, {"w": torch.ones(3)})
    writer.wait()
    assert len(written) == 1
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001.pt", "last.pt"]


def test_where_files_can_have_one_name_alone_they_are_copied(writer, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    paths = [tmp_path / "epoch-0001.pt", tmp_path / "last.pt"]
    writer.save(paths, {"w": torch.ones(3)})
    writer.wait()
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_disk_that_fails_is_told_at_the_next_checkpoint(writer, tmp_path):
    writer.save([tmp_path / "missing" / "last.pt"], {"w": torch.ones(3)})
    with pytest.raises(OSError, match="missing"):
        writer.save([tmp_path / "last.pt"], {"w": torch.ones(3)})


@pytest.mark.parametrize(("cost_seconds", "due_after"), [(0.1, 60.0), (2.0, 100.0), (30.0, 1500.0)])
def test_checkpoints_take_at_most_a_fiftieth_of_the_time(
    writer, tmp_path, monkeypatch, cost_seconds, due_after
):
    now, begun = [1000.0], threading.Event()
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def slow(*_):
        begun.wait(10)
        now[0] += cost_seconds

    monkeypatch.setattr(checkpoint, "save_state", slow)
    writer.save([tmp_path / "last.pt"], {})
    begun.set()
    writer.close()
    now[0] = 1000.0 + due_after - 0.5
    assert not writer.is_due()
    now[0] += 1.0
    assert writer.is_due()


def test_only_the_process_that_writes_asks_for_a_checkpoint():
    writer, other = CheckpointWriter(1e-9), CheckpointWriter(1e-9, writes=False)
    time.sleep(0.001)
    assert writer.is_due()
    assert not other.is_due()


def test_no_checkpoint_is_due_while_one_is_written(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(checkpoint, "save_state", lambda *_: go.wait(10))
    eager = CheckpointWriter(1e-6)
    time.sleep(0.001)
    assert eager.is_due()
    eager.save([tmp_path / "last.pt"], {})
    time.sleep(0.001)
    assert not eager.is_due()
    go.set()
    eager.close()
