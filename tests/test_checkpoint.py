"""Checkpoints are written whole, once for all of their names, and as rarely as they are dear."""

import time
from unittest.mock import Mock

import pytest
import torch

from ijepa.train import checkpoint
from ijepa.train.checkpoint import CheckpointWriter
from ijepa.weights import load_state

WRITER = CheckpointWriter(60.0)


def test_a_second_checkpoint_replaces_the_file_of_its_name_alone(tmp_path):
    kept, last = tmp_path / "epoch-0001.pt", tmp_path / "last.pt"
    WRITER.save([kept, last], {"w": torch.ones(3)}, 0.0)
    WRITER.save([last], {"w": torch.zeros(3)}, 0.0)
    assert load_state(kept)["w"].tolist() == [1, 1, 1]
    assert load_state(last)["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("has_links", [True, False])
def test_one_state_under_two_names_is_written_once(tmp_path, monkeypatch, has_links):
    if not has_links:  # then it is copied
        monkeypatch.setattr("os.link", Mock(side_effect=OSError("no links here")))
    written, save = [], checkpoint.save_state
    monkeypatch.setattr(
        checkpoint, "save_state", lambda path, body: (written.append(path), save(path, body))
    )
    paths = [tmp_path / "epoch-0001.pt", tmp_path / "last.pt"]
    WRITER.save(paths, {"w": torch.ones(3)}, 0.0)
    assert len(written) == 1
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001.pt", "last.pt"]


@pytest.mark.parametrize(
    ("fetch_seconds", "write_seconds", "due_after"),
    [(0.0, 0.1, 60.0), (0.5, 1.5, 100.0), (20.0, 10.0, 1500.0)],
)
def test_checkpoints_take_at_most_a_fiftieth_of_the_time(
    tmp_path, monkeypatch, fetch_seconds, write_seconds, due_after
):
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])

    def slow(*_):
        now[0] += write_seconds

    monkeypatch.setattr(checkpoint, "save_state", slow)
    now[0] += fetch_seconds
    WRITER.save([tmp_path / "last.pt"], {}, 1000.0)
    now[0] += due_after - 0.5
    assert not WRITER.is_due()
    now[0] += 1.0
    assert WRITER.is_due()


def test_only_the_process_that_writes_asks_for_a_checkpoint():
    writer, other = CheckpointWriter(1e-9), CheckpointWriter(1e-9, writes=False)
    time.sleep(0.001)
    assert writer.is_due()
    assert not other.is_due()
