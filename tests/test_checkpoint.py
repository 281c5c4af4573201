"""Checkpoints are written whole, once for all of their names, and as rarely as they are dear."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from ijepa.config import Config, Runtime
from ijepa.train import loop
from ijepa.train.loop import Task, fit
from ijepa.weights import load_checkpoint
from ijepa.world import World

RUNTIME = Runtime(device="cpu", workers=0, checkpoint_seconds=60)
ALONE = World()


class _Counting(Task):
    """Adds 1 to a weight in each step, which takes a second of `clock`."""

    name, unit, units_per_step = "count", "steps", 1

    def __init__(self, total_steps, kept=(), fetch_seconds=0.0, world=ALONE):
        super().__init__(Config(), RUNTIME, world)
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.total_steps, self.kept, self.fetch_seconds = total_steps, kept, fetch_seconds
        self.clock = SimpleNamespace(now=1000.0)

    def batches(self, numbers):
        yield from numbers

    def prepare(self, batch):
        return batch

    def step(self, _, __):
        self.clock.now += 1
        self.model.weight.grad = -torch.ones(1, 1)
        self.optimizer.step()
        return {"loss": torch.zeros(())}

    def state_dict(self):
        self.clock.now += self.fetch_seconds
        return {}

    def kept_names(self, step):
        return [f"epoch-{step:04d}.pt"] if step in self.kept else []


def weight_in(path):
    return load_checkpoint(path)["model"]["weight"].item()


def steps_saved(task, folder, monkeypatch, write_seconds=0.0):
    """The steps after which `fit` writes a checkpoint."""
    saved = []

    def save(_, body):
        task.clock.now += write_seconds
        saved.append(body["step"])

    monkeypatch.setattr(loop, "save_state", save)
    monkeypatch.setattr(loop.time, "monotonic", lambda: task.clock.now)
    fit(task, folder)
    return saved


def test_a_second_checkpoint_replaces_the_file_of_its_name_alone(tmp_path):
    fit(_Counting(3, kept=[2]), tmp_path)
    assert weight_in(tmp_path / "checkpoints/epoch-0002.pt") == 2
    assert weight_in(tmp_path / "checkpoints/last.pt") == 3


@pytest.mark.parametrize("has_links", [True, False])
def test_one_state_under_two_names_is_written_once(tmp_path, monkeypatch, has_links):
    if not has_links:  # then it is copied
        monkeypatch.setattr("os.link", Mock(side_effect=OSError("no links here")))
    monkeypatch.setattr(loop, "save_state", Mock(wraps=loop.save_state))
    fit(_Counting(2, kept=[2]), tmp_path)
    assert loop.save_state.call_count == 1
    files = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in files] == ["epoch-0002.pt", "last.pt"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("fetch_seconds", "write_seconds", "steps"),
    [  # after more than a minute, or 50 times what the newest one took; and after the last step
        (0.0, 0.1, [70, 140, 210, 280, 300]),
        (0.5, 1.5, [70, 180, 290, 300]),
        (2.0, 1.0, [70, 230, 300]),
    ],
)
def test_checkpoints_take_at_most_a_fiftieth_of_the_time(
    tmp_path, monkeypatch, fetch_seconds, write_seconds, steps
):
    task = _Counting(300, fetch_seconds=fetch_seconds)
    assert steps_saved(task, tmp_path, monkeypatch, write_seconds) == steps


def test_only_the_process_that_writes_asks_for_a_checkpoint(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "any_rank", lambda flag, *_: asked.append(flag) or flag)
    monkeypatch.setattr(loop, "sum_over_ranks", lambda values, _: values)
    for rank, wanted in ((0, [70, 140, 150]), (1, [])):
        task = _Counting(150, world=World(rank, 2))
        assert steps_saved(task, tmp_path, monkeypatch) == wanted
        assert any(asked) == bool(wanted)
        asked.clear()
