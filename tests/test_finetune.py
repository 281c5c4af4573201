"""Fine-tuning: published settings, exact resumes, nothing learned from the test split."""

import json
import random
import signal

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from runs import CPU, ask_at
from test_distributed import together
from typer.testing import CliRunner

from ijepa.config import DataConfig, EncoderConfig, FinetuneConfig
from ijepa.data.augmented import AugmentedBatches, _randaugment
from ijepa.data.loader import StepPlan, batches
from ijepa.data.shards import open_shards
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError, StoppedError
from ijepa.files import LAST, read_metrics
from ijepa.finetune import finetune, plan_finetune
from ijepa.jepa.schedules import warmup_cosine
from ijepa.jepa.vit import build_encoder
from ijepa.probes.arrays import hold_out
from ijepa.report import report
from ijepa.results.compare import compare
from ijepa.results.record import read_result
from ijepa.shard import shard
from ijepa.train import loop
from ijepa.train.classifier import (
    Classifier,
    DropBranch,
    layer_of,
    parameter_groups,
    step_gflops,
)
from ijepa.train.finetuning import FinetuneTask
from ijepa.weights import load_checkpoint
from ijepa_cli.main import app

QUICK = {"epochs": 2, "batch_size": 64, "lr": 1e-3, "warmup_epochs": 0.5}


def config(encoder, **settings):
    return FinetuneConfig(encoder=str(encoder), **QUICK | settings)


def classifier(depth=2, drop_path=0.0, freeze=0):
    generator = torch.Generator().manual_seed(0)
    encoder = build_encoder(EncoderConfig(arch=f"32x{depth}x2", patch_px=8), (32, 32), generator)
    return Classifier(encoder, 8, drop_path, generator, freeze=freeze)


def test_images_without_a_label_are_neither_trained_on_nor_scored(run, tmp_path):
    lines = ["path,split,kind"]
    for number in range(40):
        picture = Image.fromarray(np.full((8, 8), 6 * number, np.uint8))
        picture.save(tmp_path / f"{number}.png")
        kind = "" if number % 10 == 0 else "dark" if number % 4 < 2 else "light"
        lines.append(f"{number}.png,{'val' if number >= 30 else 'train'},{kind}")
    (tmp_path / "l.csv").write_text("\n".join(lines))
    shard(str(tmp_path / "l.csv"), tmp_path / "set", runtime=CPU)
    choice = config(run, label="kind", batch_size=8)
    (score,) = finetune(tmp_path / "set", tmp_path / "out", choice, CPU).scores
    assert (score.train_rows, score.test_rows, score.num_classes) == (27, 9, 2)


def test_fine_tuning_learns_what_the_initial_classifier_does_not_know(run, shards, tmp_path):
    choice = config(run, epochs=20, lr=3e-3, randaugment="", crop_scale=(0.8, 1.0))
    (score,) = finetune(shards, tmp_path / "out", choice, CPU).scores
    assert score.top1_interval[0] > 2 * score.chance
    losses = [record["loss"] for record in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert score.protocol == "finetune-imagenet-1pct"
    assert (score.train_rows, score.test_rows, score.num_classes) == (256, 64, 8)
    assert "randaugment none, not rand-m9-mstd0.5-inc1" in score.deviations
    assert finetune(shards, tmp_path / "out", choice, CPU).cached
    with pytest.raises(IjepaError, match=r"is not of `ijepa pretrain`.* that it began with, "):
        load_encoder(tmp_path / "out")
    outcome = report([tmp_path / "out", run], tmp_path / "page.html")
    assert "finetune-imagenet-1pct" in outcome.out.read_text()
    assert "(target), fine-tuned<" in outcome.out.read_text().replace("<wbr>", "")
    assert outcome.title == "out"
    assert compare(tmp_path / "out", tmp_path / "out" / "result.json").rows[0].difference == 0


def test_a_classifier_averages_all_tokens_of_our_encoder():
    model, images = classifier().eval(), torch.randn(2, 3, 32, 32)
    model.head = torch.nn.Identity()
    assert torch.equal(model(images), model.fc_norm(model.encoder(images).mean(dim=1)))


def test_layers_learn_as_mae_lets_them():
    model = classifier(depth=3)
    names = ["encoder.patch_embed.proj.weight", "encoder.blocks.0.norm1.bias",
             "encoder.blocks.2.mlp.fc1.weight", "fc_norm.weight", "head.weight"]  # fmt: skip
    assert [layer_of(name, 3) for name in names] == [0, 1, 3, 4, 4]
    groups = parameter_groups(model, 0.75, 0.05)
    scales = {group["lr_scale"] for group in groups}
    assert scales == {0.75**power for power in range(5)}
    grouped = [parameter for group in groups for parameter in group["params"]]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(grouped) == len(trained) == len({id(parameter) for parameter in grouped})
    assert all(
        (group["weight_decay"] == 0) == (parameter.ndim == 1)
        for group in groups
        for parameter in group["params"]
    )


def test_the_learning_rate_rises_from_nothing_and_ends_at_its_lowest():
    rates = [warmup_cosine(done, 1e-3, 1e-6, 0.1) for done in np.linspace(0, 1, 101)]
    assert rates[0] == 0
    assert rates[10] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert np.all(np.diff(rates[:11]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)


def test_deeper_blocks_are_skipped_more_often_and_none_when_scored():
    model = classifier(depth=3, drop_path=0.5)
    assert [block.drop_path1.drop_prob for block in model.encoder.blocks] == [0.0, 0.25, 0.5]
    images, draws = torch.randn(2, 3, 32, 32), torch.full((2, 6), 0.9)
    model.head.weight.data.normal_()
    whole = model(images)
    draws[1, 5] = 0.4  # the second image skips the last branch of the last block
    skipped = model(images, draws)
    assert not torch.equal(skipped[1], model(images, torch.full((2, 6), 0.9))[1])
    assert torch.equal(skipped[0], model(images, torch.full((2, 6), 0.9))[0])
    assert torch.equal(model(images), whole)


def test_a_branch_that_some_images_skip_keeps_its_mean():
    branch, tokens = DropBranch(0.25), torch.ones(8, 3, 4)
    branch.draws = torch.arange(8) / 8
    assert torch.equal(branch(tokens).mean(), tokens.mean())
    assert torch.equal(branch(tokens)[:2], torch.zeros(2, 3, 4))


def test_the_position_table_stays_as_it_was():
    model = classifier()
    assert not model.encoder.pos_embed.requires_grad
    assert all(p.requires_grad for n, p in model.named_parameters() if n != "encoder.pos_embed")


def test_a_loss_that_is_not_finite_ends_a_fine_tuning_in_one_line(run, shards, tmp_path):
    message = r"^The (loss|held-out loss) is nan at step \d; there is no earlier state\. Lower lr"
    with pytest.raises(IjepaError, match=message):
        finetune(shards, tmp_path / "out", config(run, lr=1e9, holdout=0.25), CPU)
    assert not (tmp_path / "out").exists()


def test_held_out_images_are_never_trained_on_and_scored_as_test_images(run, shards, tmp_path):
    seen, make, scored, logits_of = [], AugmentedBatches.__getitem__, [], FinetuneTask.logits

    def noted(self, step):
        batch = make(self, step)
        seen.extend(batch.numbers.tolist())
        return batch

    def noted_logits(self, part):
        for places, logits in logits_of(self, part):
            scored.append((part, places, logits))
            yield places, logits

    choice = config(run, holdout=0.25, epochs=3, batch_size=32, lr=3e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AugmentedBatches, "__getitem__", noted)
        patch.setattr(FinetuneTask, "logits", noted_logits)
        (score,) = finetune(shards, tmp_path / "out", choice, CPU).scores
    labels = open_shards(shards).split("train").labels("class").tolist()
    trained, held = hold_out(np.array(labels), 0.25, choice.seed)
    assert set(seen) == set(trained.tolist())
    assert not set(trained) & set(held)
    assert (score.train_rows, score.test_rows) == (len(trained), 64)
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    watched = [record for record in records if "held_out_accuracy" in record]
    assert [record["epoch"] for record in watched] == [1, 2, 3]
    names = ("held_out_loss", "held_out_accuracy")
    assert score.choices == {name: watched[-1][name] for name in names}
    assert score.deviations[-1] == f"{len(held)} training images held out"
    (part, places, logits), (test, _, _) = scored[-2:]
    assert not set(part.keys) & set(test.keys)
    true = torch.from_numpy(part.labels[places.numpy()])
    accuracy = float((logits.argmax(dim=1) == true).float().mean())
    loss = float(torch.nn.functional.cross_entropy(logits, true))
    assert score.choices["held_out_accuracy"] == pytest.approx(accuracy)
    assert score.choices["held_out_loss"] == pytest.approx(loss, rel=1e-6)


def test_watching_changes_no_step_and_a_stopped_watch_goes_on_to_the_same_end(
    run, shards, tmp_path
):
    choice = config(run, holdout=0.25, batch_size=32, drop_path=0.3)
    whole = finetune(shards, tmp_path / "whole", choice, CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTask, "watch", lambda *_: {})
        finetune(shards, tmp_path / "blind", choice, CPU)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "FETCH_STEPS", 2)
        kill = ask_at(signal.SIGTERM, 8 * 32, "finetune")  # in the second epoch of six steps
        with pytest.raises(StoppedError, match="Stopped by SIGTERM after step 9 of 12, which is"):
            finetune(shards, tmp_path / "cut", choice, CPU, kill)
    assert not (tmp_path / "cut").exists()
    cut = finetune(shards, tmp_path / "cut", choice, CPU)
    assert cut.scores == whole.scores
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut", "blind")]
    assert logs[0] == logs[1]
    assert [record["loss"] for record in logs[0]] == [record["loss"] for record in logs[2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"drop_path": 0.5},
        {"mixup": 0.8},
        {"cutmix": 1.0, "drop_path": 0.5},
        {"freeze": 1, "linear_first": 1, "linear_lr": 1e-2},
    ],
)
def test_two_processes_fine_tune_as_one(run, shards, tmp_path, how):
    words = ["finetune", "--encoder", run, "--data", shards, "--device", "cpu"]
    words += ["--workers", "0", "--set", "epochs=1", "--set", "batch_size=64", "--set", "lr=1e-3"]
    words += ["--set", "holdout=0.25"]
    words += [word for name in how for word in ("--set", f"{name}={how[name]}")]
    codes, errors = together(2, [*words, "--out", tmp_path / "two"])
    assert codes == [0, 0], errors
    choice = config(run, epochs=1, warmup_epochs=5.0, holdout=0.25, **how)
    (score,) = finetune(shards, tmp_path / "one", choice, CPU).scores
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3 * (1 + how.get("linear_first", 0))
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)
    assert read_result(tmp_path / "two")[0].correct == score.correct


SQUARE = DataConfig(image_px=32, batch_size=32, crop_scale=(0.08, 1.0), flip=True)


def augmented(shards, workers, seed=0, name="rand-m9-mstd0.5-inc1"):
    images = open_shards(shards).split("train")
    choice = config("x", seed=seed, randaugment=name, batch_size=32)
    plan = StepPlan(64, SQUARE, choice.seed, slice(0, 32))
    made = AugmentedBatches(images, plan, choice)
    return torch.stack([batch.images for batch in batches(made, range(4), workers)])


def test_augmentation_does_not_depend_on_workers_or_on_what_was_drawn_before(shards):
    random.seed(1)
    one = augmented(shards, 0)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002  # the state that timm would read
    assert torch.equal(one, augmented(shards, 0))
    assert torch.equal(one, augmented(shards, 2))
    assert not torch.equal(one, augmented(shards, 0, seed=1))
    assert not torch.equal(one, augmented(shards, 0, name=""))


def test_the_strongest_posterize_leaves_black_whatever_pillow_thinks_of_no_bits(shards):
    assert augmented(shards, 0, name="rand-m10-n8-inc1").shape == (4, 32, 3, 32, 32)
    (op,) = (op for op in _randaugment("rand-m10-inc1", SQUARE).ops if "Posterize" in op.name)
    op.prob = 1.0
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert op(image).getextrema() == ((0, 0),) * 3
    op.magnitude = 9
    assert op(image).getextrema() == ((128, 128), (0, 0), (0, 0))


def test_a_subset_is_drawn_class_by_class_or_named_by_a_list(run, shards, tmp_path):
    choice = config(run, subset="4-per-class", batch_size=32)
    assert plan_finetune(shards, choice).train_images == 32
    names = tmp_path / "list.txt"
    keys = open_shards(shards).split("train").keys()[::6][:40]
    names.write_text("\n".join(keys))
    assert plan_finetune(shards, config(run), subset=names).train_images == 40
    choice = config(run, epochs=1)
    (score,) = finetune(shards, tmp_path / "out", choice, CPU, subset=names).scores
    assert score.train_rows == 40
    assert "epochs 1, not 50" in score.deviations
    assert score.deviations[-1] == "batches of all 40 images"
    assert score.config["subset"].startswith("list ")


def test_the_protocols_are_the_published_ones():
    one = FinetuneConfig(encoder="e")
    assert (one.epochs, one.batch_size, one.lr, one.weight_decay) == (50, 512, 3e-5, 0.05)
    assert (one.layer_decay, one.label_smoothing, one.drop_path, one.mixup) == (0.75, 0.1, 0, 0)
    assert FinetuneConfig(encoder="e", protocol="imagenet-1pct-huge").weight_decay == 0.4
    full = FinetuneConfig(encoder="e", protocol="imagenet-full", epochs=7)
    assert (full.batch_size, full.lr, full.drop_path) == (528, 1e-4, 0.25)
    assert (one.holdout, full.holdout) == (0, 0)
    assert (full.mixup, full.cutmix, full.weight_decay, full.epochs) == (0.8, 1.0, 0.04, 7)


def test_mixed_images_have_mixed_labels_and_train_alike_twice(run, shards, tmp_path):
    choice = config(run, mixup=0.8, cutmix=1.0, epochs=1)
    one, two = (finetune(shards, tmp_path / name, choice, CPU) for name in ("a", "b"))
    assert one.scores == two.scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "pixels"}, "pixels.* can be extracted from, not fine-tuned"),
        ({"label": "colour"}, "train of .* has no label 'colour'; its labels are: class"),
        ({"subset": "1-per-class", "holdout": 0.1}, "No image can be held out"),
        ({"subset": "half"}, "'half' is no file, and not written as 1% or 5-per-class"),
        ({"mixup": 0.8, "batch_size": 63}, "Mixup pairs images, and 63 are odd"),
        ({"test_split": "test"}, "has no split 'test'"),
        ({"freeze": 3}, "--freeze 3: the encoder has 2 blocks; give 2 at most"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused(run, shards, tmp_path, settings, message):
    choice = config(**{"encoder": run} | settings)
    with pytest.raises(IjepaError, match=message):
        finetune(shards, tmp_path / "out", choice, CPU)


def test_an_encoder_that_does_not_fit_is_refused_before_images_are_compared(run, shards, tmp_path):
    told = []
    with pytest.raises(IjepaError, match="63 is no multiple of the patch's 4"):
        finetune(
            shards, tmp_path / "out", config(run, image_px=63), CPU, lambda *one: told.append(one)
        )
    assert not told


def test_the_command_says_what_would_run(run, shards, tmp_path):
    words = ["finetune", "--encoder", run, "--data", shards, "--out", tmp_path / "out", "--dry-run"]
    found = CliRunner().invoke(app, [*map(str, words), "--subset", "2-per-class", "--json"])
    plan = json.loads(found.stdout)
    assert (plan["train_images"], plan["num_classes"], plan["steps"]) == (16, 8, 50)
    words += ["--freeze", 2, "--linear-first", 10, "--subset", "2-per-class", "--json"]
    less = json.loads(CliRunner().invoke(app, [*map(str, words)]).stdout)
    assert (less["steps"], less["linear_steps"]) == (60, 10)
    assert less["gflops_per_image"] < plan["gflops_per_image"] / 2.5
    assert less["trained_parameters"] == 2 * 32 + 33 * 8  # norm and head
    assert less["parameters"] == plan["parameters"]
    assert not (tmp_path / "out").exists()


def test_a_class_that_is_only_tested_is_refused_by_its_name(run, shards, tmp_path):
    split, names = open_shards(shards).split("train"), tmp_path / "list.txt"
    classes = split.label_names["class"]
    keys = np.array(split.keys())[~np.isin(split.labels("class"), (3, 5))]
    names.write_text("\n".join(keys))
    expected = f"^2 classes of val are missing from the training images, such as {classes[3]};"
    with pytest.raises(IjepaError, match=expected):
        plan_finetune(shards, config(run), subset=names)


def test_frozen_blocks_end_bit_equal_without_gradient_or_optimizer_state(run, shards, tmp_path):
    finetune(shards, tmp_path / "out", config(run, freeze=1, epochs=1), CPU)
    state = load_checkpoint(tmp_path / "out" / LAST)
    before = load_checkpoint(run / LAST)["model"]
    names = {n for n in state["model"] if n.startswith("encoder.")}
    below = ("encoder.patch_embed", "encoder.pos_embed", "encoder.blocks.0.")
    frozen = {name for name in names if name.startswith(below)}
    assert len(frozen) == 3 + 12  # patch embedding, positions; a block
    same = {n for n in names if torch.equal(state["model"][n], before[f"target_{n}"])}
    assert same == frozen
    assert not frozen & set(state["optimizer"]["state"])
    held = {n for group in state["optimizer"]["param_groups"] for n in group["params"]}
    assert held == set(state["optimizer"]["state"]) == set(state["model"]) - frozen


def test_layer_decay_counts_frozen_blocks_and_the_rest_needs_no_more_work_than_its_own():
    whole, part, none = (classifier(depth=3, freeze=freeze) for freeze in (0, 2, 3))
    assert {g["lr_scale"] for g in parameter_groups(part, 0.5, 0.0)} == {0.5, 1.0}
    assert {g["lr_scale"] for g in parameter_groups(none, 0.5, 0.0)} == {1.0}
    assert len(parameter_groups(whole, 0.5, 0.0)) > len(parameter_groups(part, 0.5, 0.0))
    tokens, dim = 16, 32
    block = 2 * tokens * (12 * dim**2 + 2 * tokens * dim)  # forward, of matrix products
    embedding, head = 2 * tokens * 3 * 8**2 * dim, 2 * dim * 8
    forward = 3 * block + embedding + head
    counted = [1e9 * step_gflops(model, (32, 32)) for model in (whole, part, none)]
    # A backward pass costs twice its forward pass, without a gradient of the images or, in the
    # first of the trained layers, of what comes from frozen ones.
    assert counted[0] == 3 * forward - embedding
    assert counted[1] == pytest.approx(forward + 2 * block + 2 * head, rel=0.1)
    assert counted[2] == forward + 2 * head


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_frozen_blocks_compute_stays_though_positions_are_shared_by_all(is_shared):
    encoder = timm.create_model(
        "beit_base_patch16_224",
        embed_dim=32, depth=2, num_heads=2, img_size=32, num_classes=0,
        use_rel_pos_bias=not is_shared, use_shared_rel_pos_bias=is_shared,
    )  # fmt: skip
    model = Classifier(encoder, 4, 0.0, torch.Generator(), class_token=True, freeze=1)
    below = ("cls_token", "pos_embed", "patch_embed", "rel_pos_bias", "blocks.0.")
    for name, parameter in model.named_parameters():
        is_below = name.removeprefix("encoder.").startswith(below)
        assert parameter.requires_grad != (is_below and name.startswith("encoder.")), name


def test_the_head_is_trained_alone_first_and_then_all_with_a_fresh_optimizer(run, shards, tmp_path):
    states = []
    step = FinetuneTask.step

    def noted(self, number, inputs):
        record = step(self, number, inputs)
        weights = {n: one.detach().clone() for n, one in self.model.named_parameters()}
        held = {int(s["step"]) for s in self.optimizer.state.values()}
        states.append((weights, len(self.optimizer.state), held, record["lr"]))
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTask, "step", noted)
        choice = config(run, linear_first=1, epochs=1, linear_lr=1e-2, drop_path=0.3)
        (score,) = finetune(shards, tmp_path / "out", choice, CPU).scores
    before = load_checkpoint(run / LAST)["model"]
    encoder = [n for n in states[0][0] if n.startswith("encoder.") and "pos_embed" not in n]
    encoder = [n for n in encoder if not n.startswith("encoder.norm")]
    for weights, held, steps, _ in states[:4]:
        assert all(torch.equal(weights[n], before[f"target_{n}"]) for n in encoder)
        assert (held, len(steps)) == (2, 1)
    weights, held, steps, _ = states[-1]
    assert not any(torch.equal(weights[n], before[f"target_{n}"]) for n in encoder)
    assert steps == {4}
    rates = [rate for *_, rate in states]
    assert rates[:4] == [warmup_cosine(n / 4, 1e-2, 1e-6, 0.0) for n in range(4)]
    assert rates[4:] == [warmup_cosine(n / 4, 1e-3, 1e-6, 0.5) for n in range(4)]
    assert {"linear_first 1, not 0", "linear_lr 0.01, not 0.001"} <= set(score.deviations)


def test_the_head_alone_learns_what_the_frozen_features_tell(run, shards, tmp_path):
    choice = config(run, linear_first=6, epochs=1, linear_lr=1e-1, randaugment="", lr=1e-6)
    choice = choice.model_copy(update={"crop_scale": (0.8, 1.0)})
    finetune(shards, tmp_path / "out", choice, CPU)
    losses = [record["loss"] for record in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert np.mean(losses[20:24]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize("cut_after", [2, 4, 6])
def test_a_stopped_run_of_two_phases_goes_on_to_the_same_end(run, shards, tmp_path, cut_after):
    choice = config(run, linear_first=1, epochs=1, freeze=1, drop_path=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "FETCH_STEPS", 1)
        kill = ask_at(signal.SIGTERM, (cut_after - 1) * 64, "finetune")
        with pytest.raises(StoppedError, match=f"after step {cut_after} of 8, which is"):
            finetune(shards, tmp_path / "cut", choice, CPU, kill)
    cut = finetune(shards, tmp_path / "cut", choice, CPU)
    assert cut.scores == finetune(shards, tmp_path / "whole", choice, CPU).scores
    one, two = (load_checkpoint(tmp_path / name / LAST) for name in ("cut", "whole"))
    assert all(torch.equal(one["model"][n], two["model"][n]) for n in two["model"])
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cut", "whole")]
    assert logs[0] == logs[1]


def test_a_rate_of_a_linear_phase_that_is_not_asked_for_is_refused():
    with pytest.raises(ValueError, match="linear_lr changes nothing without linear_first"):
        FinetuneConfig(encoder="e", linear_lr=1e-2)
