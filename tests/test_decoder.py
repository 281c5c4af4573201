"""Decoders: they draw what they are told, resume exactly, and refuse other weights."""

import json
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from gratings import write_gratings
from PIL import Image
from runs import CPU, EAGER, StopError, ask_at, metrics_of, stop_at
from typer.testing import CliRunner

from ijepa.config import DecoderConfig, PredictionsConfig, ShardConfig, validated
from ijepa.decoder.model import (
    Decoder,
    block_boxes,
    cut_blocks,
    draw_blocks,
    draw_flow,
    flow_loss,
    load_decoder,
    paste_blocks,
    sample_blocks,
)
from ijepa.encoders.own import load_jepa
from ijepa.errors import IjepaError, StoppedError
from ijepa.figures.draw import GAP_PX, PNG_SCALE
from ijepa.files import LAST, read_metrics
from ijepa.recipes import load_recipe
from ijepa.shard import shard
from ijepa.train import loop
from ijepa.train_decoder import train_decoder
from ijepa.visualize import visualize
from ijepa.weights import load_checkpoint, load_state, save_state
from ijepa_cli.main import app

TINY = {"image_px": 8, "channels": (8, 16), "batch_size": 16, "steps": 12,
        "statistics_images": 32, "sampling_steps": 3, "evaluated_images": 8}  # fmt: skip


def config(encoder, **settings):
    return DecoderConfig(encoder=str(encoder), **TINY | settings)


@pytest.fixture(scope="module")
def decoder(run, shards, tmp_path_factory):
    """A decoder of 12 steps, trained without a stop."""
    out = tmp_path_factory.mktemp("decoders") / "tiny"
    train_decoder(shards, out, config(run), CPU)
    return out


@pytest.mark.slow
def test_a_decoder_learns_what_its_condition_alone_tells():
    settings = config("x", channels=(16, 16), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    conditions = torch.randn(32, 6, generator=generator)
    pixels = conditions[:, :3, None, None].clamp(-1, 1).expand(-1, -1, 8, 8)
    model = Decoder(settings, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    for step in range(40):
        optimizer.zero_grad()
        flow_loss(model, pixels, conditions, *draw_flow(32, 8, 0, step)).backward()
        optimizer.step()
    (noise, share), shuffled = draw_flow(32, 8, 0, 40), conditions.roll(1, dims=0)
    with torch.no_grad():
        told = flow_loss(model, pixels, conditions, noise, share)
        misled = flow_loss(model, pixels, shuffled, noise, share)
    assert told < 0.5 * misled
    colours = sample_blocks(model, conditions[:16], noise[:16], 8).mean(dim=(2, 3))
    error = (colours - pixels[:16, :, 0, 0]).abs().mean()
    assert error < 0.5 * (colours - pixels[1:17, :, 0, 0]).abs().mean()


def test_a_block_put_back_where_it_was_cut_changes_nothing():
    recipe = load_recipe("scenes-mini")
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (5, 3, 64, 64), dtype=np.uint8))
    blocks = torch.tensor([[9, 10, 17, 18], [0, 1, 8, 9], [54, 55, 62, 63]] + [[5, 6, 13, 14]] * 2)
    boxes = block_boxes(blocks, recipe.grid, 8)
    assert boxes[:3].tolist() == [[8, 8, 16, 16], [0, 0, 16, 16], [48, 48, 16, 16]]
    cut = cut_blocks(images, boxes, 16)
    assert torch.equal(paste_blocks(images, boxes, cut), images)
    other = paste_blocks(images, boxes, -torch.ones_like(cut))
    changed = (other != images).any(dim=1)
    assert not changed[0, :8].any()
    assert (other[0, :, 8:24, 8:24] == 0).all()


def test_blocks_are_those_of_the_run_and_outside_its_contexts():
    recipe = load_recipe("scenes-mini")
    masks, boxes = draw_blocks(recipe, 50, 0, 0)
    assert masks.targets.shape[:2] == (1, 50)
    assert torch.equal(boxes, block_boxes(masks.targets[0], recipe.grid, 8))
    for context, target in zip(masks.context, masks.targets[0], strict=True):
        assert not np.isin(context, target).any()


def test_patches_that_are_no_rectangle_have_no_pixels_to_decode_to():
    with pytest.raises(IjepaError, match="no rectangles"):
        block_boxes(torch.tensor([[0, 1, 9]]), (8, 8), 8)


def test_a_decoder_is_a_stage_that_is_made_once(run, shards, decoder):
    outcome = train_decoder(shards, decoder, config(run), CPU)
    assert outcome.cached
    assert outcome.steps == 12
    assert outcome.images == 8
    assert outcome.gain == pytest.approx(outcome.shuffled - outcome.true)
    assert outcome.gain_interval[0] < outcome.gain < outcome.gain_interval[1]
    assert 0 <= outcome.resized < outcome.true
    steps = [record["step"] for record in read_metrics(decoder / "metrics.jsonl")]
    assert steps == list(range(1, 13))
    with pytest.raises(IjepaError, match=r"steps was 12, now 13"):
        train_decoder(shards, decoder, config(run, steps=13), CPU)


def same_as(decoder, other):
    ours, theirs = (load_state(folder / LAST) for folder in (decoder, other))
    assert all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())
    results = [json.loads((folder / "result.json").read_text()) for folder in (decoder, other)]
    assert results[0] == results[1]
    return metrics_of(decoder) == metrics_of(other)


@pytest.mark.slow
def test_a_run_that_breaks_off_goes_on_to_the_same_weights(
    run, shards, decoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "FETCH_STEPS", 4)
    with pytest.raises(StopError):
        train_decoder(shards, tmp_path / "cut", config(run), EAGER, stop_at(8, "train"))
    assert not (tmp_path / "cut").exists()
    assert load_state(tmp_path / "cut.partial" / LAST)["step"] in (4, 8)
    train_decoder(shards, tmp_path / "cut", config(run), CPU)
    assert same_as(decoder, tmp_path / "cut")


@pytest.mark.slow
def test_sigterm_saves_first(run, shards, decoder, tmp_path):
    kill = ask_at(signal.SIGTERM, 10, "train")
    with pytest.raises(StoppedError, match=r"Stopped by SIGTERM after step 11 of 12, which is"):
        train_decoder(shards, tmp_path / "cut", config(run), CPU, kill)
    assert not (tmp_path / "cut").exists()
    train_decoder(shards, tmp_path / "cut", config(run), CPU)
    assert same_as(decoder, tmp_path / "cut")


def loaded(folder, encoder):
    return load_decoder(folder, load_jepa(encoder)[0], encoder)


def test_a_decoder_of_other_weights_is_refused(run, shards, decoder, tmp_path):
    assert loaded(decoder, str(run)).config == config(run, test_split="val")
    with pytest.raises(IjepaError, match=r"decodes embeddings of weights .* but random:"):
        loaded(decoder, f"random:{run}")
    choice = PredictionsConfig(encoder=f"random:{run}", decoder=str(decoder))
    with pytest.raises(IjepaError, match="train a decoder for it"):
        visualize(tmp_path / "p.png", choice, shards, runtime=CPU)
    assert not (tmp_path / "p.png").exists()


def test_a_damaged_or_missing_decoder_is_refused(run, shards, decoder, tmp_path):
    choice = PredictionsConfig(encoder=str(run), decoder=str(run))
    with pytest.raises(IjepaError, match="is no finished decoder"):
        visualize(tmp_path / "p.png", choice, shards, runtime=CPU)
    broken = shutil.copytree(decoder, tmp_path / "broken")
    path = broken / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(IjepaError, match="is no readable file of weights"):
        loaded(broken, str(run))
    with pytest.raises(IjepaError, match="is no checkpoint of a decoder"):
        loaded(run, str(run))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "random:vit_tiny/8@32"}, "has no predictor"),
        ({"split": "test"}, "has no split 'test'"),
        ({"batch_size": 300}, "fewer than one batch of 300; lower it with --set batch_size=64"),
    ],
)
def test_what_cannot_be_decoded_is_refused(run, shards, tmp_path, settings, message):
    choice = config(**{"encoder": run} | settings)
    with pytest.raises(IjepaError, match=re.escape(message)):
        train_decoder(shards, tmp_path / "out", choice, CPU)
    assert not (tmp_path / "out").exists()


def test_a_split_of_one_image_is_refused_before_the_decoder_is_trained(run, tmp_path):
    for split, count in (("train", 32), ("val", 1)):
        write_gratings(tmp_path / "images", split, count, seed=0)
    shard(tmp_path / "images", tmp_path / "set")
    with pytest.raises(IjepaError, match=r"too few images \(1\); two are needed"):
        train_decoder(tmp_path / "set", tmp_path / "out", config(run), CPU)
    assert not (tmp_path / "out.partial").exists()


def test_a_file_without_a_predictor_is_refused(run, shards, tmp_path):
    body = load_checkpoint(run / "checkpoints" / "last.pt")
    kept = {name: w for name, w in body["model"].items() if not name.startswith("predictor")}
    save_state(tmp_path / "bare.pt", body | {"model": kept})
    with pytest.raises(IjepaError, match=r"bare\.pt holds no predictor; name a run"):
        train_decoder(shards, tmp_path / "out", config(encoder=tmp_path / "bare.pt"), CPU)


def test_without_diffusers_one_line_says_what_to_install(run, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(IjepaError, match=r"pip install diffusers"):
        train_decoder(shards, tmp_path / "out", config(run), CPU)


def test_settings_that_make_no_decoder_are_refused():
    with pytest.raises(IjepaError, match="image_px 30 is no multiple of 4"):
        validated(DecoderConfig, {"encoder": "x", "image_px": 30}, "options")


def test_a_picture_has_a_row_an_image_and_is_the_same_twice(run, shards, decoder, tmp_path):
    choice = PredictionsConfig(
        encoder=str(run), decoder=str(decoder), images=3, samples=2, target_samples=2
    )
    made = [visualize(tmp_path / name, choice, shards, runtime=CPU) for name in ("a.png", "b.png")]
    assert made[0].keys == made[1].keys
    assert len(set(made[0].keys)) == 3
    assert made[0].figures["spread_predicted"] > 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert visualize(tmp_path / "a.png", choice, shards, runtime=CPU).cached
    with Image.open(tmp_path / "a.png") as picture:
        width, height = picture.size
    step = (144 + GAP_PX) * PNG_SCALE
    assert width == 6 * step + GAP_PX * PNG_SCALE
    assert 3 * step < height < 4 * step


def test_a_decoder_of_8_bit_rgb_draws_no_other_images(run, decoder, tmp_path):
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    for number in range(4):
        np.save(images / f"{number}.npy", np.full((32, 32, 3), 500 * number, np.uint16))
    shard(images.parent, tmp_path / "set", ShardConfig(channels=3))
    choice = PredictionsConfig(encoder=str(run), decoder=str(decoder), split="train")
    with pytest.raises(IjepaError, match=r"A decoder draws 8-bit RGB; .*set is of other images"):
        visualize(tmp_path / "a.png", choice, tmp_path / "set", runtime=CPU)


def test_the_command_says_what_was_drawn(run, shards, decoder, tmp_path):
    words = ["visualize", "predictions", "--encoder", run, "--decoder", decoder, "--data", shards]
    words += ["--out", tmp_path / "p.png", "--images", 2, "--samples", 1, "--json"]
    found = CliRunner().invoke(app, [*map(str, words)])
    assert json.loads(found.stdout)["figures"]["spread_predicted"] is None
    assert (tmp_path / "p.png").stat().st_size > 1000
