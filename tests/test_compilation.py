"""How many graphs `--compile` makes: a GPU's compiler takes many seconds for each."""

import pytest
import torch
from torch._dynamo.utils import counters

from ijepa.config import Runtime
from ijepa.jepa.step import Trainer
from ijepa.pretrain import pretrain
from ijepa.recipes import load_recipe
from ijepa.train import pretraining

MOST_GRAPHS, FIRST_STEPS = 4, 3


@pytest.fixture
def fresh_compiler():
    """Graphs of other tests are forgotten, and those of this one afterwards."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_run_makes_few_graphs_in_its_first_steps_and_none_for_health_checks(
    shards, tmp_path, monkeypatch
):
    after_step, lengths = [], set()

    def step(trainer, number, images, groups, **options):
        outcome = real_step(trainer, number, images, groups, **options)
        after_step.append(counters["stats"]["unique_graphs"])
        lengths.update((g.context.shape[1], g.targets.shape[2]) for g in groups)
        return outcome

    real_step, compile_blocks = Trainer.step, pretraining.compile_blocks
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(
        pretraining,
        "compile_blocks",
        lambda encoders, predictor: compile_blocks(encoders, predictor, "aot_eager"),
    )
    config = load_recipe(
        "cifar10",
        # Sizes that no length of a mask equals: equal ones get a graph.
        ["encoder.arch=80x3x2", "predictor.dim=72", "predictor.depth=3", "data.batch_size=13",
         "masks.group_size=13", "masks.num_targets=4", "optimization.precision=bf16",
         "optimization.epochs=2", "optimization.warmup_epochs=1",
         "watch.every_steps=8", "watch.num_images=40"],
    )  # fmt: skip
    runtime = Runtime(device="cpu", workers=0, compile=True)
    pretrain(shards, tmp_path / "compiled", config, runtime)
    assert len(after_step) == 38
    assert len(lengths) > 10
    assert 0 < after_step[FIRST_STEPS - 1] <= MOST_GRAPHS, after_step
    assert counters["stats"]["unique_graphs"] == after_step[FIRST_STEPS - 1]
    assert not counters["graph_break"]
