"""Schedules: ends, order, and that they are functions of the step alone."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ijepa.config import OptimizationConfig
from ijepa.jepa.schedules import Schedules

runs = st.builds(
    lambda epochs, warmup, per_epoch: Schedules(
        OptimizationConfig(epochs=epochs, warmup_epochs=warmup * epochs), per_epoch
    ),
    st.integers(2, 50),
    st.floats(0, 0.5),
    st.integers(2, 200),
)

cooled = st.builds(
    lambda run, fraction: Schedules(
        run.config.model_copy(update={"schedule": "hold-then-cool", "cool_fraction": fraction}),
        run.steps_per_epoch,
    ),
    runs,
    st.floats(0.01, 1),
)


@given(runs)
def test_the_learning_rate_rises_then_falls_to_its_end(run):
    rates = [run.lr(step) for step in range(run.total_steps)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert abs(rates[-1] - run.config.final_lr) < 1e-12
    assert max(rates) <= run.config.lr


@given(runs)
def test_weight_decay_and_ema_momentum_never_fall_and_end_at_their_ends(run):
    values = [run.weight_decay(step) for step in range(run.total_steps)]
    assert values == sorted(values)
    assert abs(values[-1] - run.config.final_weight_decay) < 1e-12
    values = [run.ema(step) for step in range(run.total_steps)]
    assert values[0] == run.config.ema[0]
    assert values == sorted(values)
    assert values[-1] < 1.0


rounded = Schedules(
    OptimizationConfig(epochs=10, warmup_epochs=0, schedule="hold-then-cool", cool_fraction=0.07),
    10,
)


@given(cooled, st.integers(0, 10))
@example(rounded, 0)
def test_the_learning_rate_is_held_and_then_cooled_to_its_end(run, start):
    rates = [run.lr(step) for step in range(run.total_steps)]
    cool_steps = run.config.cool_fraction * run.total_steps
    held = rates[max(run.warmup_steps - 1, 0) : int(run.total_steps - cool_steps)]
    assert held == pytest.approx([run.config.lr] * len(held), rel=1e-12)
    peak, changes = rates.index(max(rates)), np.diff(rates)
    assert (changes[:peak] >= -1e-12).all()
    assert (changes[peak:] <= 1e-12).all()
    assert rates[-1] == run.config.final_lr
    resumed = Schedules(run.config, run.steps_per_epoch)
    assert [resumed.lr(step) for step in range(start, run.total_steps)] == rates[start:]


@given(cooled)
def test_the_cooling_is_a_straight_line_and_follows_the_warm_up(run):
    begin = max(run.warmup_steps, run.total_steps * (1 - run.config.cool_fraction))
    for step in range(math.ceil(begin), run.total_steps):
        done = (step + 1 - begin) / max(1, run.total_steps - begin)
        line = run.config.lr + done * (run.config.final_lr - run.config.lr)
        assert run.lr(step) == pytest.approx(line, abs=1e-12)


@given(cooled)
def test_hold_then_cool_holds_the_weight_decay_and_cools_at_the_end_of_the_run(run):
    values = {run.weight_decay(step) for step in range(run.total_steps)}
    assert values == {run.config.weight_decay}
    longer = run.config.model_copy(update={"schedule_scale": 1.25})
    stretched = Schedules(longer, run.steps_per_epoch)
    assert stretched.lr(run.total_steps - 1) == run.config.final_lr


@given(runs, st.floats(0, 1))
def test_equal_ends_hold_the_ema_momentum(run, momentum):
    config = run.config.model_copy(update={"ema": (momentum, momentum)})
    held = Schedules(config, run.steps_per_epoch)
    assert {held.ema(step) for step in range(held.total_steps)} == {momentum}


@given(
    scale=st.sampled_from([1.0, 1.1, 1.15, 1.2, 1.25, 1.3, 4 / 3]),
    epochs=st.integers(1, 600),
    per_epoch=st.integers(1, 7000),
)
@example(scale=1.15, epochs=20, per_epoch=11)
def test_schedules_stretch_over_as_many_steps_as_the_published_code_rounds_to(
    scale, epochs, per_epoch
):
    found = Schedules(OptimizationConfig(epochs=epochs, schedule_scale=scale), per_epoch)
    assert found.scheduled_steps == int(scale * epochs * per_epoch)


def test_a_longer_schedule_is_cut_off_by_the_end_of_the_run():
    stretched = Schedules(OptimizationConfig(epochs=10, schedule_scale=1.25), 20)
    assert stretched.total_steps == 200
    assert stretched.scheduled_steps == 250
    assert stretched.lr(199) > stretched.config.final_lr
