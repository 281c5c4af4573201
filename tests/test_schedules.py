"""Schedules: ends, order, and that they are functions of the step alone."""

from hypothesis import given
from hypothesis import strategies as st

from ijepa.config import OptimizationConfig
from ijepa.method.schedules import Schedules

runs = st.builds(
    lambda epochs, warmup, per_epoch: Schedules(
        OptimizationConfig(epochs=epochs, warmup_epochs=warmup * epochs), per_epoch
    ),
    st.integers(2, 50),
    st.floats(0, 0.5),
    st.integers(2, 200),
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
def test_weight_decay_never_falls_and_ends_at_its_end(run):
    values = [run.weight_decay(step) for step in range(run.total_steps)]
    assert values == sorted(values)
    assert abs(values[-1] - run.config.final_weight_decay) < 1e-12


@given(runs)
def test_ema_momentum_starts_at_its_start_and_stays_below_one(run):
    values = [run.ema(step) for step in range(run.total_steps)]
    assert values[0] == run.config.ema[0]
    assert values == sorted(values)
    assert values[-1] < 1.0


def test_a_longer_schedule_is_cut_off_by_the_end_of_the_run():
    stretched = Schedules(OptimizationConfig(epochs=10, schedule_scale=1.25), 20)
    assert stretched.total_steps == 200
    assert stretched.scheduled_steps == 250
    assert stretched.lr(199) > stretched.config.final_lr
