"""Recipes: round trips, overrides, the paper's rows, files of the released code, faults."""

import logging

import pytest
import yaml
from typer.testing import CliRunner

import ijepa.pretrain
from ijepa.config import PretrainConfig, flat
from ijepa.errors import IjepaError
from ijepa.jepa.masks import check_masks
from ijepa.recipes import (
    CHOICES,
    choose,
    dump_yaml,
    load_recipe,
    recipe_names,
    recipe_title,
    settings_for,
)
from ijepa_cli.main import app

PUBLISHED = yaml.safe_load("""
data: {batch_size: 16, color_jitter_strength: 0.0, crop_scale: [0.3, 1.0], crop_size: 448,
  image_folder: somewhere/, num_workers: 10, pin_mem: true, root_path: /data,
  use_color_distortion: false, use_gaussian_blur: false, use_horizontal_flip: false}
logging: {folder: /logs/, write_tag: jepa}
mask: {allow_overlap: false, aspect_ratio: [0.75, 1.5], enc_mask_scale: [0.85, 1.0], min_keep: 10,
  num_enc_masks: 1, num_pred_masks: 4, patch_size: 16, pred_mask_scale: [0.15, 0.2]}
meta: {copy_data: false, load_checkpoint: false, model_name: vit_huge, pred_depth: 12,
  pred_emb_dim: 384, read_checkpoint: null, use_bfloat16: true}
optimization: {ema: [0.996, 1.0], epochs: 300, final_lr: 1.0e-6, final_weight_decay: 0.4,
  ipe_scale: 1.0, lr: 0.001, start_lr: 0.0002, warmup: 40, weight_decay: 0.04}
""")


def load(tmp_path, body, *overrides):
    """Read a body as a recipe."""
    path = tmp_path / "recipe.yaml"
    path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return load_recipe(path, overrides)


def test_a_released_file_is_the_recipe_of_its_name(tmp_path):
    assert load(tmp_path, PUBLISHED) == load_recipe("in1k_vith16-448_ep300")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_a_round_trip_says_what_it_is_and_its_masks_fit(name, tmp_path):
    recipe = load_recipe(name)
    assert load(tmp_path, dump_yaml(recipe)) == recipe
    check_masks(recipe.grid, recipe.masks)
    title = recipe_title(name)
    assert 10 < len(title) < 100
    assert title.endswith(".") or ":" in title


def test_defaults_are_the_published_recipe_but_for_the_precision():
    """Which is bf16 there, and left to the device by default."""
    assert load_recipe("in1k_vith14_ep300", ["optimization.precision=auto"]) == PretrainConfig()


def test_recipes_of_the_paper_compute_in_bf16_as_its_files_say_and_small_ones_choose():
    found = {name: load_recipe(name).optimization.precision for name in recipe_names()}
    own = {name for name in recipe_names() if not name.startswith(("in1k_", "in22k_", "table"))}
    assert {"cifar10", "own-64", "imagenette-vits16", "scenes-mini"} < own
    assert {name for name, precision in found.items() if precision == "auto"} == own
    assert {precision for name, precision in found.items() if name not in own} == {"bf16"}


def test_the_summary_says_what_the_released_batch_is_taken_for_and_how_to_change_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ijepa.pretrain, "_open", lambda _, config: (range(5000), {}, config.data))
    load(tmp_path, PUBLISHED)
    small = ("encoder.arch=32x2x2", "data.image_px=32", "encoder.patch_px=4", "masks.min_keep=2")
    words = ["pretrain", "--recipe", str(tmp_path / "recipe.yaml"), "--data", "s3://d"]
    words += [
        "--out",
        "o",
        "--dry-run",
        *(word for setting in small for word in ("--set", setting)),
    ]
    shown = " ".join(CliRunner().invoke(app, words).stdout.split())
    assert "data.batch_size is 2,048 images over all devices" in shown
    assert "each GPU takes (16, here masks.group_size)" in shown
    assert "--set data.batch_size=N" in shown
    shown = CliRunner().invoke(app, [*words, "--set", "data.batch_size=64"]).stdout
    assert "over all devices" not in shown


@pytest.mark.parametrize("more", [{"seed": 3}, {"meta": PUBLISHED["meta"] | {"seed": 3}}])
def test_the_seed_of_a_released_configuration_is_taken(tmp_path, more):
    assert load(tmp_path, PUBLISHED | more).seed == 3


FOREIGN = "not settings of facebookresearch/ijepa: "


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("", {"folder": "/x", "nodes": 16}, FOREIGN + "folder, nodes. Remove"),
        ("", {"mask": [{"num_blocks": 8}, {"num_blocks": 2}]}, FOREIGN + "mask. Remove"),
        ("", {"app": "v", "model": dict.fromkeys("abcde", 1)}, FOREIGN + ".*d and 1 more"),
        ("data", {"use_gaussian_blur": True}, "data.use_gaussian_blur is True, but only False"),
        ("mask", {"num_enc_masks": 2}, "mask.num_enc_masks is 2, but only 1"),
        ("meta", {"use_mask_tokens": True}, FOREIGN + "meta.use_mask_tokens"),
        ("optimization", {"lr": "fast"}, "optimization.lr = 'fast'"),
    ],
)
def test_what_a_released_file_may_not_ask_is_refused(tmp_path, group, changes, message):
    changes = {group: PUBLISHED[group] | changes} if group else changes
    with pytest.raises(IjepaError, match=message):
        load(tmp_path, PUBLISHED | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1\n- 2\n", "holds a list"),
        ("sed: 1\ndata: {batch: 2}", r"data\.batch is not a known.*sed is not a known"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_all_its_faults(tmp_path, text, message):
    with pytest.raises(IjepaError, match=f"recipe.*{message}"):
        load(tmp_path, text)


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(IjepaError, match="cifar10"):
        load_recipe("nothing")


def test_overrides_reach_nested_settings_and_keep_types():
    recipe = load_recipe(
        "cifar10", ["optimization.lr=2e-3", "data.flip=false", "masks.target_scale=[0.1, 0.2]"]
    )
    assert (recipe.optimization.lr, recipe.data.flip) == (2e-3, False)
    assert recipe.masks.target_scale == (0.1, 0.2)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("cifar10", "watch.rollbacks=2", r"watch\.rollbacks is not a known setting\.$"),
        ("cifar10", "optimization.lrate=1", r"lrate is not a known .*mean 'optimization\.lr'"),
        (
            "cifar10",
            "data.image_px=0",
            r": data\.image_px = 0: it should be greater than or equal to 1\.$",
        ),
        ("cifar10", "data.crop_scale=1", r"write a list, such as data\.crop_scale=\[1,1\]"),
        ("cifar10", "data.channels=[8]", r"write the number alone, data\.channels=8\.$"),
        ("cifar10", "data.batch_size=yes", "data: batch_size should not be true or false"),
        ("cifar10", "data.crop_scale=[0.5,on]", "data: crop_scale should not be true or false"),
        ("cifar10", "data.batch_size={a: 1}", r"data\.batch_size: it should be a valid integer"),
        ("cifar10", "data.mean=[0.1,0.2]", r": data\.mean has 2 numbers for 3 channels\.$"),
        ("cifar10", "data.batch_size=0", "data.batch_size = 0"),
        ("cifar10", "data.image_px=30", "not a multiple of encoder.patch_px"),
        ("cifar10", "data.batch_size", "has no '='"),
        ("cifar10", "masks.target_scale=[0.3, 0.2]", "must not exceed"),
        (
            "table06_random",
            "masks.num_targets=2",
            r"masks\.num_targets is a setting of another masks\.kind",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(name, override, message):
    with pytest.raises(IjepaError, match=message) as raised:
        load_recipe(name, [override])
    assert "\n" not in str(raised.value)


def changed(name, base):
    """Settings in which a recipe differs from another, by dotted name."""
    ours, theirs = (flat(load_recipe(n).model_dump()) for n in (name, base))
    return {key: ours[key] for key in ours if ours[key] != theirs.get(key, ours[key])}


@pytest.mark.parametrize(
    ("name", "base", "differences"),
    [
        ("in1k_vitb16_ep300", "in1k_vitb16_ep600", {"optimization.epochs": 300}),
        ("table06_random", "in1k_vitb16_ep300", {"masks.kind": "random"}),
        ("table06_rasterized", "in1k_vitb16_ep300", {"masks.kind": "rasterized"}),
        (
            "table07_pixels",
            "table07_embeddings",
            {"optimization.epochs": 800, "targets.space": "normalised-pixels"},
        ),
        ("table08_targets-0.2-0.3", "in1k_vitb16_ep300", {"masks.target_scale": (0.2, 0.3)}),
        ("table09_context-0.4-1", "in1k_vitb16_ep300", {"masks.context_scale": (0.4, 1.0)}),
        ("table10_1-target", "in1k_vitb16_ep300", {"masks.num_targets": 1}),
        ("table11_input-masked", "table11_output-masked", {"targets.masked": "input"}),
        ("table12_predictor-depth-6", "table12_predictor-depth-12", {"predictor.depth": 6}),
        (
            "table13_weight-decay-0.05",
            "in1k_vitl16_ep600",
            {"optimization.weight_decay": 0.05, "optimization.final_weight_decay": 0.05},
        ),
        ("table14_predictor-width-1024", "table14_predictor-width-384", {"predictor.dim": 1024}),
    ],
)
def test_a_row_of_the_papers_tables_changes_what_its_table_varies(name, base, differences):
    assert changed(name, base) == differences


def test_masks_of_another_kind_start_from_their_own_defaults(tmp_path):
    recipe = load(tmp_path, "base: cifar10\nmasks:\n  kind: random\n")
    assert (recipe.masks.kind, recipe.masks.min_keep, recipe.data.image_px) == ("random", 10, 32)


@pytest.mark.parametrize("kind", ["rasterized", "block", "random"])
def test_another_kind_of_masks_takes_what_it_has_in_common_from_the_recipe(kind, caplog):
    with caplog.at_level(logging.INFO, "ijepa"):
        masks = load_recipe("cifar10", [f"masks.kind={kind}", "masks.min_keep=10"]).masks
    assert (masks.kind, masks.draw, masks.min_keep) == (kind, "symmetric", 10)
    assert f"masks.num_targets of the recipe is left out: {kind} masks have none" in caplog.text


def test_another_batch_warns_of_the_learning_rate_and_of_the_masks(caplog):
    load_recipe("in1k_vith14_ep300", ["data.batch_size=64"])
    assert "lr 0.001 is meant for batches of 2048; for 64 people take 3.1e-05" in caplog.text
    assert "over 64 images instead of 128: they become longer" in caplog.text


def test_a_run_that_ends_in_its_warm_up_warns(caplog):
    load_recipe("cifar10", ["optimization.epochs=1", "optimization.warmup_epochs=100"])
    assert "rises to the end of training: optimization.warmup_epochs is 100 and" in caplog.text


@pytest.mark.parametrize(
    "overrides", [[], ["seed=3"], ["data.batch_size=512", "optimization.lr=2.5e-4"]]
)
def test_nothing_is_warned_of_where_nothing_changes(caplog, overrides):
    assert load_recipe("in1k_vith14_ep300", overrides) != PretrainConfig(seed=99)
    assert not caplog.text


def test_a_base_that_is_a_file_stands_beside_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "below.yaml").write_text("base: cifar10\noptimization: {epochs: 9}\n")
    (tmp_path / "above.yaml").write_text("base: below.yaml\ndata: {batch_size: 16}\n")
    monkeypatch.chdir("/")
    config = load_recipe(str(tmp_path / "above.yaml"))
    assert (config.optimization.epochs, config.data.batch_size) == (9, 16)
    assert config.encoder == load_recipe("cifar10").encoder


@pytest.mark.parametrize(
    ("image_px", "on_gpu", "recipe"),
    [
        (16, False, "cifar10"),
        (32, True, "cifar10-gpu"),
        (64, False, "own-64"),
        (64, True, "own-64"),
        (128, True, "own-128"),
        (500, False, "own-64"),
        (500, True, "own-224"),
    ],
)
def test_a_recipe_is_chosen_by_the_size_of_the_images_and_the_device(image_px, on_gpu, recipe):
    assert choose(image_px, on_gpu=on_gpu).recipe == recipe


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.recipe)
@pytest.mark.parametrize("num_images", [5, 300, 3_000, 10_000_000])
def test_a_chosen_recipe_shows_as_many_images_as_of_its_own_data(choice, num_images):
    recipe = load_recipe(choice.recipe)
    config = load_recipe(choice.recipe, settings_for(choice, num_images))
    held_out = config.watch.num_images if config.watch.held_out else 0
    assert held_out <= num_images / 10
    trained = num_images - held_out
    assert config.data.batch_size <= trained
    epochs, warmup = config.optimization.epochs, config.optimization.warmup_epochs
    assert epochs * trained == pytest.approx(choice.images_seen, rel=0.1) or epochs in (1, 10**6)
    fraction = recipe.optimization.warmup_epochs / recipe.optimization.epochs
    assert warmup / epochs == pytest.approx(fraction, rel=1e-3)
    assert epochs / config.checkpoint_epochs <= 1.1 * recipe.optimization.epochs
    rate, whole = config.optimization.lr, recipe.optimization.lr
    assert rate / config.data.batch_size == pytest.approx(whole / recipe.data.batch_size)


def test_what_is_set_by_hand_is_not_fitted_to_the_number_of_images():
    mini = choose(64, on_gpu=False)
    typed = ["optimization.epochs=2", "checkpoint_epochs=1"]
    added = settings_for(mini, 300, typed)
    assert added == ["optimization.warmup_epochs=0.125", "watch.num_images=30"]
    assert settings_for(mini, 11_000) == []
    added = settings_for(choose(500, on_gpu=True), 100, ["data.batch_size=32"])
    assert not any(one.startswith(("optimization.lr", "optimization.start_lr")) for one in added)
