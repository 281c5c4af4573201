"""Linear heads trained together learn what each would learn alone, by published rules."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from arrays import labelled
from sklearn.linear_model import LogisticRegression
from test_attentive import SHORT, on_tokens, places

import ijepa.probes.heads as heads_module
import ijepa.probes.linear as linear_module
from ijepa.config import ProbeConfig
from ijepa.probes.arrays import ProbeRequest
from ijepa.probes.linear import Batches, choose_and_train, train_heads
from ijepa.probes.protocols import LINEAR_PROTOCOLS, Head, LinearProtocol
from ijepa.progress import silent

CPU = torch.device("cpu")
DIM, LAYERS, CLASSES = 6, 4, 3
EVERY_KIND = tuple(
    Head(features, norm, lr, decay)
    for features in ("last", "concat")
    for norm in ("none", "batch", "plain-batch")
    for lr, decay in ((0.1, 5e-2), (0.03, 0.0))
)


def protocol(optimizer="sgd", heads=EVERY_KIND, **changes):
    defaults = {"epochs": 3, "batch": 32, "schedule": lambda done: 1 - done, "source": "test"}
    return LinearProtocol(heads=heads, optimizer=optimizer, **defaults | changes)


def data(images=120, seed=0, views=1):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % CLASSES
    centres = np.random.default_rng(99).standard_normal((CLASSES, LAYERS, DIM))
    values = np.concatenate(
        [centres[labels] + rng.standard_normal((images, LAYERS, DIM)) for _ in range(views)]
    )
    rows = np.arange(views * images).reshape(views, images).T
    return labelled(values.astype(np.float32), labels, rows)


def trained(rule=None, *, train=None, seed=0, progress=silent, kept=None):
    return train_heads(train or data(), rule or protocol(), seed, CPU, progress, kept)


def batches_of(rule, images):
    return Batches(rule, np.zeros((images, 1), np.int64), 0)


def group_of(heads, number):
    return next(group for group in heads._groups if number in group.numbers)


def states(heads):
    return [group.state_dict() for group in heads._groups]


def inputs_of(test):
    values = torch.from_numpy(test.features)
    return {"last": values[:, -1], "concat": values.flatten(1)}


assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)


def trained_alone(head, number, rule, train, seed=0):
    """The plain way: torch modules, autograd, one optimizer; same first weights, same batches."""
    dim = DIM * (LAYERS if head.features == "concat" else 1)
    group = heads_module.HeadGroup([number], head, dim, CLASSES, rule, seed)
    linear = torch.nn.Linear(group.weight.shape[2], CLASSES)
    linear.weight.data, linear.bias.data = group.weight.data[0].clone(), group.bias.data[0].clone()
    modules = [linear]
    if head.norm != "none":
        norm = torch.nn.BatchNorm1d(linear.in_features, rule.norm_eps, affine=head.norm == "batch")
        modules.insert(0, norm)
    model = torch.nn.Sequential(*modules)
    buffers = {}
    batches = Batches(rule, train.views, seed)
    for step in range(batches.steps):
        values = torch.from_numpy(train.features[batches.rows(step)])
        inputs = values.flatten(1) if head.features == "concat" else values[:, -1]
        model.zero_grad()
        F.cross_entropy(
            model(inputs), torch.from_numpy(train.labels[batches.images(step)])
        ).backward()
        factor = rule.rate_factor(batches.share_done(step), batches.size)
        for name, parameter in model.named_parameters():
            update(rule, head, name, parameter, buffers, head.lr * factor)
    return model.eval()


@torch.no_grad()
def update(rule, head, name, parameter, buffers, lr):
    """SGD as VISSL sets it up, or LARS as MAE's util/lars.py states it."""
    gradient = parameter.grad.clone()
    of_linear = name.startswith(f"{1 if head.norm != 'none' else 0}.")
    if of_linear:
        gradient += head.weight_decay * parameter
    if rule.optimizer == "lars" and parameter.ndim > 1:
        gradient *= 0.001 * parameter.norm() / gradient.norm()
    buffer = buffers.setdefault(name, torch.zeros_like(parameter))
    buffer.mul_(0.9).add_(gradient)
    parameter -= lr * (gradient + 0.9 * buffer if rule.optimizer == "sgd" else buffer)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-plain", "lars"])
def test_heads_trained_together_are_those_trained_one_by_one(optimizer):
    rule, train, test = protocol(optimizer), data(), data(50, seed=1)
    if optimizer == "lars":  # moves by thousandths of the weights' length
        rule = protocol(optimizer, schedule=lambda done: 1000 * (1 - done))
    together, inputs = trained(rule, train=train), inputs_of(test)
    for number, head in enumerate(rule.heads):
        alone, group = trained_alone(head, number, rule, train), group_of(together, number)
        place = group.numbers.index(number)
        torch.testing.assert_close(group.weight[place], alone[-1].weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(group.bias[place], alone[-1].bias, rtol=1e-4, atol=1e-5)
        predicted = alone(inputs[head.features]).argmax(dim=1)
        torch.testing.assert_close(together.predict(inputs)[number], predicted)


def test_batches_larger_than_memory_takes_at_once_give_the_same_gradients(monkeypatch):
    whole = trained()
    monkeypatch.setattr(heads_module, "LOGITS_AT_ONCE", 50)
    torch.testing.assert_close(states(whole), states(trained()))


def test_a_convex_head_ends_at_the_optimum_of_scikit_learn():
    train, head = data(300), Head("last", "none", 0.5, 0.02)
    rule = protocol("sgd-plain", heads=(head,), epochs=2000, batch=300, schedule=lambda _: 1)
    found = trained(rule, train=train)._groups[0]
    # decay / 2 |w|^2 on the mean loss: C = 1 / (decay n); biases decay as weights of a constant
    probe = LogisticRegression(C=1 / (0.02 * 300), tol=1e-8, max_iter=1000, fit_intercept=False)
    probe.fit(np.column_stack([train.last(), np.ones(300)]), train.labels)
    weights = torch.cat([found.weight[0], found.bias[0].unsqueeze(1)], dim=1).detach()
    np.testing.assert_allclose(weights, probe.coef_, atol=2e-4)


def test_every_epoch_shows_every_image_once_and_its_views_in_turn():
    rule, train = protocol(epochs=6, batch=25), data(101, views=4)
    batches, seen = Batches(rule, train.views, 0), {}
    assert batches.steps_per_epoch == 4  # a last batch of one image is left out
    for epoch in range(6):
        images = np.concatenate([batches.images(4 * epoch + turn) for turn in range(4)])
        assert len(set(images)) == len(images) == 100
    for step in range(batches.steps):
        for image, row in zip(batches.images(step), batches.rows(step), strict=True):
            assert row in train.views[image, 1:]  # never the evaluation view
            seen.setdefault(image, []).append(row)
    complete = [rows for rows in seen.values() if len(rows) == 6]
    assert complete
    for rows in complete:
        assert sorted(rows) == sorted([*rows[:3], *rows[:3]])  # three views, twice


class Kept(dict):
    """Copies, as a file would; a stop comes right after some state was set."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after

    def __setitem__(self, name, state):
        super().__setitem__(name, deepcopy(state))
        if state.get("steps") == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["sgd", "lars", "attentive"])
@pytest.mark.parametrize("stop_after", [1, 9])
def test_heads_that_were_stopped_end_as_those_that_were_not(kind, stop_after, monkeypatch):
    monkeypatch.setattr(linear_module, "SAVE_SECONDS", 0.0)
    if kind == "attentive":
        rule, train, weights = replace(SHORT, epochs=3), on_tokens(*places(100, 0)), "heads"
    else:
        rule, train, weights = protocol(kind), data(), "groups"
    whole, keep, seen = trained(rule, train=train), Kept(stop_after), []
    with pytest.raises(KeyboardInterrupt):
        trained(rule, train=train, kept=keep)
    for _ in range(2):  # stopped, then finished
        again = trained(
            rule, train=train, kept=keep, progress=lambda _, done, all: seen.append(done)
        )
        assert_same(again.state_dict()[weights], whole.state_dict()[weights])
    steps = Batches(rule, train.views, 0).steps
    assert seen == [*range(stop_after, steps + 1), steps]


def test_heads_trained_in_bf16_are_nearly_those_trained_in_fp32_and_kept_in_fp32():
    inputs = inputs_of(data(300, seed=1))
    exact, rounded = (trained(protocol(bf16=bf16)) for bf16 in (False, True))
    for one, two in zip(exact._groups, rounded._groups, strict=True):
        assert two.weight.dtype == two.bias.dtype == torch.float32
        assert not torch.equal(one.weight, two.weight)
        torch.testing.assert_close(one.weight, two.weight, rtol=0.02, atol=0.02)
    alike = exact.predict(inputs) == rounded.predict(inputs)
    assert alike.float().mean() > 0.99


def test_a_stop_in_one_precision_does_not_go_on_in_another(monkeypatch, caplog):
    monkeypatch.setitem(LINEAR_PROTOCOLS, "ijepa", protocol())
    request = ProbeRequest(ProbeConfig(name="linear"))
    [whole] = choose_and_train(data(), data(50, seed=1), request)
    assert not caplog.records
    rounded = {"precision": {"bf16": True}, "choice": {"accuracy": [1.0]}}
    [again] = choose_and_train(data(), data(50, seed=1), request._replace(states=rounded))
    assert again.choices == whole.choices
    assert [one.levelname for one in caplog.records] == ["WARNING"]


def test_features_on_the_device_give_the_same_scores(monkeypatch):
    train, test = data(120, views=2), data(50, seed=1)
    rule = protocol(epochs=5, augment="rrc-flip")
    monkeypatch.setitem(LINEAR_PROTOCOLS, "ijepa", rule)
    request = ProbeRequest(ProbeConfig(name="linear"))
    [from_file] = choose_and_train(train, test, request)
    monkeypatch.setattr(linear_module, "_room_bytes", lambda _: 2**30)
    monkeypatch.setattr("ijepa.probes.linear.ROWS_AT_ONCE", 50)
    loaded = []
    told = request._replace(progress=lambda task, done, _: loaded.append((task, done)))
    [from_device] = choose_and_train(train, test, told)
    assert {("load features", done) for done in (50, 240)} <= set(loaded)
    assert np.array_equal(from_file.predictions, from_device.predictions)
    assert from_file.choices == from_device.choices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("room_bytes", [0, 2**30], ids=["read ahead", "on the GPU"])
def test_a_gpu_trains_in_bf16_nearly_the_heads_of_a_cpu(room_bytes, monkeypatch):
    monkeypatch.setattr(linear_module, "_room_bytes", lambda _: room_bytes)
    monkeypatch.setitem(LINEAR_PROTOCOLS, "ijepa", protocol())
    train, test = data(), data(300, seed=1)
    request = ProbeRequest(ProbeConfig(name="linear"))
    [on_gpu] = choose_and_train(train, test, request._replace(device="cuda"))
    [on_cpu] = choose_and_train(train, test, request._replace(device="cpu"))
    assert (on_gpu.precision, on_cpu.precision) == ("bf16", "fp32")
    accuracies = [float((fit.predictions == test.labels).mean()) for fit in (on_gpu, on_cpu)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


def test_other_seeds_draw_other_heads_and_orders():
    one, same, other = (trained(seed=seed) for seed in (0, 0, 1))
    assert_same(states(one), states(same))
    assert not torch.equal(one._groups[0].weight, other._groups[0].weight)


@pytest.mark.parametrize(
    ("name", "lrs"),
    [  # by epoch, at batches of 256, or of the protocol's own size where that is larger
        ("vissl-cifar100", {0: 0.01, 7: 0.01, 8: 0.001, 16: 0.0001, 24: 0.00001}),
        ("vissl-places205", {4: 0.001, 12: 0.00001}),
        ("vissl-inat18", {23: 0.01, 48: 0.0001}),
        ("vissl-in1k", {8: 0.001}),
        ("vissl-clevr-count", {0: 0.01, 25: 0.00505}),
        ("vissl-clevr-dist", {50: 0.00505}),
        ("vissl-in1k-lars", {14: 6.4, 15: 0.64, 45: 0.0064}),
        ("paper-in1k-lars", {30: 0.0064}),
        ("mae-lars", {5: 3.2, 10: 6.4, 50: 3.2}),
        ("mae-lars-50", {30: 3.2}),
        ("dinov2-linear", {0: 4e-5}),
    ],
)
def test_learning_rates_are_the_published_ones(name, lrs):
    rule = LINEAR_PROTOCOLS[name]
    batches = batches_of(rule, 4 * rule.batch)
    for epoch, lr in lrs.items():
        steps = [(epoch + 1) * batches.steps_per_epoch - 1, epoch * batches.steps_per_epoch]
        last, first = (
            rule.rate_factor(batches.share_done(step), rule.batch) * rule.heads[0].lr
            for step in steps
        )
        assert first == pytest.approx(lr)
        assert last == first or not rule.per_epoch


def test_protocols_have_the_published_number_of_heads():
    numbers = {"vissl-cifar100": 4, "vissl-in1k-lars": 16, "paper-in1k-lars": 24, "mae-lars": 1}
    for name, number in (numbers | {"dinov2-linear": 26}).items():
        heads = LINEAR_PROTOCOLS[name].heads
        assert len(heads) == len({head.name for head in heads}) == number, name


def test_steps_and_learning_rates_follow_the_images_only_where_a_protocol_says_so():
    dinov2, lars = LINEAR_PROTOCOLS["dinov2-linear"], LINEAR_PROTOCOLS["paper-in1k-lars"]
    assert batches_of(dinov2, 5000).steps == batches_of(dinov2, 1_281_167).steps == 12500
    size = batches_of(lars, 1024).size  # of a batch that the images do not fill
    assert lars.rate_factor(0.0, size) == 1024 / 256
