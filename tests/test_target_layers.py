"""A run that predicts several layers: every stage takes it, and compares the last layer only."""

import numpy as np
import pytest
import torch
from runs import CPU, EAGER, StopError, changed, losses, metrics_of, stop_at

from ijepa.config import ConvertConfig, ExtractConfig, RetrievalConfig
from ijepa.convert import convert
from ijepa.data.shards import open_shards
from ijepa.decoder.model import draw_blocks, embed
from ijepa.encoders.formats import read_networks
from ijepa.encoders.own import load_jepa
from ijepa.extract import extract
from ijepa.features.store import open_features
from ijepa.jepa.augment import normalise
from ijepa.jepa.model import layer_norm
from ijepa.pretrain import pretrain
from ijepa.train.watch import Watch
from ijepa.visualize import visualize
from ijepa.weights import load_checkpoint, save_state

DIM = 32


@pytest.fixture(scope="module")
def layers_config(tiny_config):
    return changed(tiny_config, "targets.layers=[1, 2]")


@pytest.fixture(scope="module")
def layers_run(shards, layers_config, tmp_path_factory):
    """A finished run whose predictor predicts both blocks."""
    out = tmp_path_factory.mktemp("layers") / "run"
    pretrain(shards, out, layers_config, CPU)
    return out


def test_it_learns_and_goes_on_exactly_where_it_stopped(
    layers_run, shards, layers_config, tmp_path
):
    out = tmp_path / "run"
    with pytest.raises(StopError):
        pretrain(shards, out, layers_config, EAGER, stop_at(320, "pretrain"))
    pretrain(shards, out, layers_config, CPU)
    assert metrics_of(out) == metrics_of(layers_run)
    assert np.mean(losses(out)[-4:]) < np.mean(losses(out)[:4])


def test_its_health_is_measured_by_predictions_of_the_last_layer(layers_run, shards):
    jepa, config = load_jepa(str(layers_run))
    images = open_shards(shards).split("train")
    samples = [images.read_sample(number) for number in range(16)]
    watch = Watch(config, samples, torch.device("cpu"))
    lidars = [watch.check(jepa)["lidar"]]
    for rows in (slice(0, DIM), slice(DIM, 2 * DIM)):
        jepa.predictor.predictor_proj.weight[rows] = 0
        lidars.append(watch.check(jepa)["lidar"])
    assert lidars[0] == lidars[1] != lidars[2]


def test_features_and_conditions_of_a_decoder_are_of_the_last_layer(layers_run, shards, tmp_path):
    extract(shards, tmp_path / "f.h5", ExtractConfig(encoder=str(layers_run)), CPU)
    with open_features(tmp_path / "f.h5") as features:
        assert features.shape[-1] == DIM
    jepa, config = load_jepa(str(layers_run))
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    images = normalise(pixels, config.data.mean, config.data.std)
    masks, _ = draw_blocks(config, 3, 0, 0)
    found = {of: embed(jepa, config.data, pixels, masks, of) for of in ("targets", "predictions")}
    tokens = layer_norm(jepa.target_encoder(images))
    wanted = [t[block].mean(0) for t, block in zip(tokens, masks.targets[0], strict=True)]
    torch.testing.assert_close(found["targets"], torch.stack(wanted))
    predicted = jepa.predictions(images, masks)
    torch.testing.assert_close(found["predictions"], predicted[..., DIM:].mean(1))


def test_retrieval_is_that_of_a_predictor_of_the_last_layer_alone(
    layers_run, shards, tiny_config, tmp_path
):
    state, alone = load_checkpoint(layers_run / "checkpoints" / "last.pt"), tmp_path / "alone.pt"
    for name in ("predictor.predictor_proj.weight", "predictor.predictor_proj.bias"):
        state["model"][name] = state["model"][name][DIM:].clone()
    save_state(alone, state | {"config": tiny_config.model_dump(mode="json")})
    names = (str(layers_run), str(alone))
    config = RetrievalConfig(encoder=names, images=2, measured=16, store_images=64)
    figures = visualize(tmp_path / "r.png", config, shards, runtime=CPU).figures
    ours, theirs = ([n for key, n in figures.items() if key.endswith(name)] for name in names)
    assert len(ours) == len(theirs) == 8
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_weights_keep_all_layers_in_our_format_and_the_published_one_leaves_its_predictor_out(
    layers_run, tmp_path, caplog
):
    convert(layers_run, tmp_path / "w.pt", ConvertConfig(to="ours"))
    predictor = read_networks(tmp_path / "w.pt").parts["predictor"]
    assert predictor["predictor_proj.weight"].shape[0] == 2 * DIM
    done = convert(layers_run, tmp_path / "w.pth.tar", ConvertConfig(to="published"))
    assert done.left_out == ("predictor",)
    assert done.holds == "context encoder, target encoder"
    assert "predicts layers (1, 2)" in caplog.text
    assert read_networks(tmp_path / "w.pth.tar").parts.keys() == {"encoder", "target_encoder"}
    assert set(torch.load(tmp_path / "w.pth.tar", weights_only=True)) >= {"encoder", "epoch"}
