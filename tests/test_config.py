"""Configurations: round trips, overrides, and faults told in one line."""

import pytest
import yaml

from ijepa.config import PretrainConfig
from ijepa.errors import IjepaError
from ijepa.recipes import dump_yaml, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(recipe))
    assert load_recipe(str(path)) == recipe


def test_defaults_are_the_published_recipe_but_for_the_precision():
    """Which is bf16 there, and left to the device by default."""
    assert load_recipe("in1k_vith14_ep300").optimization.precision == "bf16"
    recipe = load_recipe("in1k_vith14_ep300", ["optimization.precision=auto"])
    assert recipe == PretrainConfig()


def test_overrides_reach_nested_settings_and_keep_types():
    recipe = load_recipe(
        "cifar10", ["optimization.lr=2e-3", "data.flip=false", "masks.target_scale=[0.1, 0.2]"]
    )
    assert recipe.optimization.lr == 2e-3
    assert recipe.data.flip is False
    assert recipe.masks.target_scale == (0.1, 0.2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimization.learning_rate=1", "optimization.learning_rate is not a known setting"),
        ("data.batch_size=0", "data.batch_size = 0"),
        ("data.image_px=30", "not a multiple of encoder.patch_px"),
        ("data.batch_size", "has no '='"),
        ("masks.target_scale=[0.3, 0.2]", "must not exceed"),
    ],
)
def test_a_wrong_setting_is_named(override, message):
    with pytest.raises(IjepaError, match=message) as raised:
        load_recipe("cifar10", [override])
    assert "\n" not in str(raised.value)


def test_all_faults_are_told_at_once(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"sed": 1, "data": {"batch": 2}}))
    with pytest.raises(IjepaError, match=r"data\.batch is not a known.*sed is not a known"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(IjepaError, match="recipe"):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(IjepaError, match="cifar10"):
        load_recipe("nothing")
