"""Weights travel between formats without changing a bit, and show whose they are."""

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

import ijepa
from ijepa.config import ConvertConfig
from ijepa.convert import convert
from ijepa.data.decode import decode_rgb
from ijepa.data.loader import ViewPlan, evaluation_view
from ijepa.data.shards import open_shards
from ijepa.encoders.formats import Networks, inferred_config, read_networks
from ijepa.encoders.spec import WRITTEN, load_encoder
from ijepa.encoders.write import timm_settings
from ijepa.errors import IjepaError
from ijepa.jepa.augment import normalise, resized_px
from ijepa.jepa.model import build_ijepa, parameter_groups
from ijepa.provenance import Provenance
from ijepa.records import remove_output
from ijepa.train.loop import load_full_state

FOLDER = Path(__file__).parent / "parity"
TINY, ARCH = FOLDER / "official-tiny.pth.tar", "48x3x3"
TOLERANCE = 1e-5
BOTH = pytest.mark.parametrize("which", ["target", "context"])
ANSWERS = {"target": "target_tokens", "context": "encoder_all_tokens"}


@pytest.fixture(scope="module")
def recorded():
    with np.load(FOLDER / "official-tiny.npz") as arrays:
        return dict(arrays)


def convert_to(to, source, out, which="target", arch=None):
    return convert(source, out, ConvertConfig(to=to, which=which, arch=arch))


def relative_error(ours, theirs):
    return np.linalg.norm(ours.detach().numpy() - theirs) / np.linalg.norm(theirs)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@BOTH
def test_features_of_the_published_file_are_the_recorded_ones(recorded, which):
    encoder = load_encoder(f"published:{ARCH}@{TINY}", which=which).network
    images = torch.from_numpy(recorded["images"][0])
    assert relative_error(encoder(images), recorded[ANSWERS[which]]) < TOLERANCE
    pooled = load_encoder(f"published:{ARCH}@{TINY}", which=which).features(images, 1)[:, 0]
    assert relative_error(pooled, recorded[ANSWERS[which]].mean(1)) < TOLERANCE


def test_the_predictor_of_the_published_file_predicts_what_was_recorded(recorded, tmp_path):
    convert_to("ours", TINY, tmp_path / "ours.pt", arch=ARCH)
    networks = read_networks(tmp_path / "ours.pt")
    predictor = build_ijepa(networks.config).predictor
    predictor.load_state_dict(networks.parts["predictor"])
    context, targets = (
        torch.from_numpy(recorded[f"step0/{n}"]).long() for n in ("context", "targets")
    )
    images = torch.from_numpy(recorded["images"][0])
    seen = networks.encoder("context")(images, context)
    assert relative_error(seen, recorded["context_tokens"]) < TOLERANCE
    assert relative_error(predictor(seen, context, targets), recorded["predictions"]) < TOLERANCE


WAYS = ("ours", "published"), ("published", "ours"), ("ours", "ours"), ("safetensors", "ours")


@pytest.mark.parametrize("way", WAYS)
def test_all_three_networks_come_back_bit_for_bit(tmp_path, way):
    source = read_networks(TINY, ARCH)
    first = tmp_path / ("first.safetensors" if way[0] == "safetensors" else "first")
    convert_to(way[0], TINY, first, arch=ARCH)
    convert_to(way[1], first, tmp_path / "second")
    back = read_networks(tmp_path / "second")
    assert back.parts.keys() == {"encoder", "predictor", "target_encoder"}
    assert all(same(source.parts[part], back.parts[part]) for part in back.parts)
    assert back.config == source.config
    assert back.provenance == source.provenance


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_compiled_and_parallel_networks_are_taken_off(tmp_path, prefix):
    published = torch.load(TINY, weights_only=True)
    bare = {
        part: {name.removeprefix("module."): value for name, value in published[part].items()}
        for part in ("encoder", "target_encoder")
    }
    wrapped = {part: {prefix + k: v for k, v in bare[part].items()} for part in bare}
    torch.save(wrapped, tmp_path / "two.pth")
    torch.save(wrapped["encoder"], tmp_path / "one.pth")
    inner = {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in bare["encoder"].items()}
    torch.save(inner, tmp_path / "inner.pth")
    for name in ("two.pth", "one.pth", "inner.pth"):
        parts = read_networks(tmp_path / name, ARCH).parts
        assert all(same(weights, bare[part]) for part, weights in parts.items())


def test_the_published_format_is_the_published_files_own(tmp_path):
    convert_to("published", TINY, tmp_path / "again.pth.tar", arch=ARCH)
    theirs, ours = (torch.load(p, weights_only=True) for p in (TINY, tmp_path / "again.pth.tar"))
    assert all(
        same(ours[part], theirs[part]) for part in ("encoder", "predictor", "target_encoder")
    )
    assert ours["epoch"] == theirs["epoch"]


@pytest.mark.parametrize("to", ["timm", pytest.param("hf", marks=pytest.mark.slow)])
@BOTH
def test_timm_and_transformers_load_their_folder_and_it_comes_back_bit_for_bit(
    tmp_path, recorded, which, to
):
    libraries = {"timm": timm}
    if to == "hf":
        libraries["transformers"] = pytest.importorskip("transformers")  # of extra hf
    load = convert_to(to, TINY, tmp_path / "there", which, ARCH).load
    model = eval(load, libraries).eval()  # noqa: S307  # the line that a user is told
    images = torch.from_numpy(recorded["images"][0])
    tokens = model.forward_features(images) if to == "timm" else model(images).last_hidden_state
    assert relative_error(tokens, recorded[ANSWERS[which]]) < TOLERANCE
    convert_to("ours", tmp_path / "there", tmp_path / "back")
    source, back = read_networks(TINY, ARCH), read_networks(tmp_path / "back")
    assert same(back.encoder_weights(which), source.encoder_weights(which))
    assert len(back.parts) == 1


def test_timm_cuts_and_normalises_images_as_the_run_did(tmp_path, run, shards):
    load = convert_to("timm", run, tmp_path / "there").load
    model = eval(load, {"timm": timm}).eval()  # noqa: S307  # the line that a user is told
    view = timm.data.resolve_model_data_config(model)
    data = read_networks(run).config.data
    assert tuple(view["input_size"]) == (3, *data.image_size)
    assert (tuple(view["mean"]), tuple(view["std"])) == (data.mean, data.std)
    assert view["crop_pct"] == data.eval_crop_fraction
    assert (view["interpolation"], view["crop_mode"]) == ("bilinear", "center")
    image = open_shards(shards).split("val").read_image(0)
    pixels = timm.data.create_transform(**view)(Image.open(io.BytesIO(image)).convert("RGB"))
    ours = load_encoder(str(run))
    plan = ViewPlan(ours.data.image_px, ours.data.eval_crop_fraction)
    seen = normalise(evaluation_view(decode_rgb(image), plan), ours.data.mean, ours.data.std)
    torch.testing.assert_close(pixels[None], seen, rtol=0, atol=0.03)


@pytest.mark.parametrize("to", ["hf", "timm", "ours", "safetensors"])
def test_converted_files_may_be_read_by_whoever_the_umask_lets(tmp_path, to):
    out = tmp_path / {"ours": "x.pt", "safetensors": "x.safetensors"}.get(to, "folder")
    before = os.umask(0o027)
    try:
        convert_to(to, TINY, out, arch=ARCH)
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o640}


def test_a_conversion_that_was_removed_is_made_again_beside_its_card(tmp_path):
    for remove in (Path.unlink, remove_output):
        made = convert_to("ours", TINY, tmp_path / "x.pt", arch=ARCH)
        assert made.card.exists()
        remove(tmp_path / "x.pt")
        assert not convert_to("ours", TINY, tmp_path / "x.pt", arch=ARCH).cached
    made.card.unlink()
    again = convert_to("ours", TINY, tmp_path / "x.pt", arch=ARCH)
    assert (again.cached, again.card) == (True, None)


def test_a_card_of_the_users_own_is_kept(tmp_path):
    card = tmp_path / "x.pt.README.md"
    card.write_text("precious")
    with pytest.raises(IjepaError, match="is no card of ijepa's"):
        convert_to("ours", TINY, tmp_path / "x.pt", arch=ARCH)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_conversion_killed_between_card_and_weights_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr("ijepa.stage.Work.publish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert_to("ours", TINY, tmp_path / "x.pt", arch=ARCH)
    assert not convert_to("ours", TINY, tmp_path / "x.pt", arch=ARCH).cached
    assert {path.name for path in tmp_path.iterdir()} >= {"x.pt", "x.pt.README.md"}


def test_a_folder_that_transformers_wrote_is_taken_as_the_context_encoder(tmp_path, caplog):
    transformers = pytest.importorskip("transformers")  # of extra hf
    convert_to("hf", TINY, tmp_path / "hf", "context", ARCH)
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "theirs")
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # which disagrees with the training
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(said))
    networks, source = read_networks(tmp_path / "theirs"), read_networks(TINY, ARCH)
    assert "ImageNet" in caplog.text
    assert networks.config.data.mean[0] == 0.485
    assert networks.config.encoder.arch == ARCH
    assert same(networks.encoder_weights("context"), source.encoder_weights("context"))
    with pytest.raises(IjepaError, match=r"no target encoder.*--which context"):
        networks.encoder("target")


def test_the_processor_normalises_and_crops_as_the_run_did(tmp_path, run):
    transformers = pytest.importorskip("transformers")  # of extra hf
    convert_to("hf", run, tmp_path / "hf")
    data = read_networks(run).config.data
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    grey = np.full((2 * data.image_px, 3 * data.image_px, 3), 128, np.uint8)
    pixels = torch.as_tensor(np.asarray(processor(grey, return_tensors="np")["pixel_values"]))
    assert pixels.shape == (1, 3, data.image_px, data.image_px)
    expected = (128 / 255 - np.array(data.mean)) / np.array(data.std)
    np.testing.assert_allclose(pixels[0, :, 3, 5], expected, rtol=1e-5)
    edge = processor.size["shortest_edge"]
    assert data.image_px / edge == pytest.approx(data.eval_crop_fraction, abs=0.5 / edge)


def test_features_of_a_run_are_those_of_its_converted_files(run, tmp_path):
    own = load_encoder(str(run))
    images = torch.randn(2, 3, *own.data.image_size, generator=torch.Generator().manual_seed(0))
    names = {"ours": "x.pt", "published": "x.pth.tar", "safetensors": "x.safetensors", "timm": "t"}
    names["hf"] = "hf:h"
    for to, name in names.items():
        out = tmp_path / name.removeprefix("hf:")
        convert_to(to, run, out)
        file = f"{out}/model.safetensors" if to == "timm" else f"hf:{out}" if to == "hf" else out
        encoder = load_encoder(str(file))
        assert encoder.data == own.data
        assert encoder.weights_sha256 == own.weights_sha256
        assert torch.equal(encoder.features(images, 2), own.features(images, 2))
        if to in ("ours", "safetensors", "hf"):
            assert encoder.provenance == own.provenance


def test_a_run_does_not_go_on_from_weights_alone(run, tiny_config, tmp_path):
    convert_to("ours", run, tmp_path / "weights.pt")
    model = build_ijepa(tiny_config)
    optimizer = torch.optim.AdamW(parameter_groups([model.encoder, model.predictor]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(IjepaError, match="weights alone"):
        load_full_state(model, optimizer, tmp_path / "weights.pt", lambda _: None)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("arch", "patch_px", "image_px"),
    [("vit_huge", 14, 224), ("vit_huge", 16, 448), ("vit_giant", 16, 224), ("vit_base", 16, 224)],
)
def test_architecture_is_read_from_shapes_and_timm_makes_the_same(arch, patch_px, image_px):
    from ijepa.config import DataConfig, EncoderConfig, PretrainConfig

    config = PretrainConfig(
        data=DataConfig(image_px=image_px), encoder=EncoderConfig(arch=arch, patch_px=patch_px)
    )
    with torch.device("meta"):
        networks = build_ijepa(config)
        parts = {
            "encoder": networks.encoder.state_dict(),
            "predictor": networks.predictor.state_dict(),
        }
    assert inferred_config(parts, None, "it") == config
    found = Networks("it", config, parts, Provenance(origin="published"))
    found.check()
    with torch.device("meta"):
        theirs = timm.create_model(
            WRITTEN["timm"]["architecture"], num_classes=0, **timm_settings(config)
        )
    ours = {name: tuple(value.shape) for name, value in parts["encoder"].items()}
    assert {name: tuple(value.shape) for name, value in theirs.state_dict().items()} == ours
    assert theirs.blocks[0].attn.num_heads == networks.encoder.blocks[0].attn.num_heads


def test_heads_that_no_shape_tells_are_asked_for():
    with pytest.raises(IjepaError, match=r"published:48x3xHEADS@FILE"):
        load_encoder(str(TINY))
    with pytest.raises(IjepaError, match=r"another architecture: .* missing"):
        load_encoder(f"published:48x4x3@{TINY}")
    with pytest.raises(IjepaError, match="names no file"):
        load_encoder("published:48x3x3@nothing.pth.tar")
    with pytest.raises(IjepaError, match="HEADS"):
        load_encoder(f"random:{TINY}")


def test_an_architecture_that_weights_contradict_is_refused(run, tmp_path):
    for source in (run, tmp_path / "hf"):
        with pytest.raises(IjepaError, match="records that it is 32x2x2, not vit_small"):
            convert_to("ours", source, tmp_path / "x.pt", arch="vit_small")
        if source == run:
            convert_to("hf", run, tmp_path / "hf")
    convert_to("ours", run, tmp_path / "x.pt", arch="32x2x2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body["target_encoder"].pop("module.norm.bias"), "norm.bias missing"),
        (lambda body: body.update(target_encoder=3), "int"),
        (
            lambda body: body.update(target_encoder=body.pop("encoder") and {}),
            "begins with nothing",
        ),
        (lambda body: body["encoder"].update(more="text"), "str"),
        (lambda body: body["predictor"].pop("module.predictor_norm.bias"), "predictor_norm.bias"),
        (lambda body: [body.pop(name) for name in list(body)], "keys"),
    ],
)
def test_a_published_file_that_is_not_whole_is_refused(tmp_path, change, words):
    body = torch.load(TINY, weights_only=True)
    change(body)
    torch.save(body, tmp_path / "odd.pth.tar")
    with pytest.raises(IjepaError, match=words):
        convert_to("timm", tmp_path / "odd.pth.tar", tmp_path / "out", arch=ARCH)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "wrong", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-12}, {"model_type": "vit"}]
)
def test_a_folder_of_another_network_is_refused(tmp_path, wrong):
    convert_to("hf", TINY, tmp_path / "hf", arch=ARCH)
    settings = tmp_path / "hf" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | wrong))
    with pytest.raises(IjepaError, match=str(next(iter(wrong.values())))):
        read_networks(tmp_path / "hf")


@pytest.fixture
def command(monkeypatch):
    """Run `ijepa convert` as a user does; returns its exit code."""
    from ijepa_cli.main import main

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["ijepa", "convert", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code

    return run_main


def test_the_command_converts_once_and_says_how_to_load(tmp_path, command, capsys, run):
    for cached in (False, True):
        assert command(run, tmp_path / "there", "--to", "timm", "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["cached"] is cached
        assert "timm.create_model" in said["load"]
    assert command(run, tmp_path / "there", "--to", "timm") == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert f"hf upload USER/NAME {tmp_path / 'there'} --exclude stage.json" in told
    card = Path(said["card"]).read_text()
    for words in ("images seen", "fingerprint", "image_px: 32", "timm.create_model", "licence"):
        assert words in card


def test_the_card_tells_the_hub_library_licence_and_tags(tmp_path, run):
    config = ConvertConfig(to="timm", license="mit")
    assert ModelCard.load(convert(run, tmp_path / "mine", config).card).data.to_dict() == {
        "library_name": "timm",
        "license": "mit",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["i-jepa", "self-supervised-learning", "vision-transformer"],
    }
    convert_to("hf", TINY, tmp_path / "metas", arch=ARCH)
    card = ModelCard.load(tmp_path / "metas" / "README.md").data
    assert (card.library_name, card.license) == ("transformers", "cc-by-nc-4.0")


def test_a_licence_that_is_no_identifier_of_the_hub_is_refused(tmp_path, run, command, capsys):
    words = (run, tmp_path / "mine", "--to", "timm", "--license")
    for name in ("Apache 2.0", "MIT", ""):
        assert command(*words, name) == 1
        said = f"--license {name}: write the hub's identifier, such as mit, cc-by-nc-4.0 or other."
        assert said in capsys.readouterr().err
    assert command(*words, "other") == 0


def test_weights_of_meta_keep_their_licence(tmp_path):
    config = ConvertConfig(to="hf", arch=ARCH, license="mit")
    with pytest.raises(
        IjepaError, match=r"Meta published under cc-by-nc-4\.0; leave --license mit"
    ):
        convert(TINY, tmp_path / "tiny", config)
    assert not (tmp_path / "tiny").exists()


def relative_differences(ours, theirs):
    """(n,) distance over length, and (n,) cosine, of two arrays of features."""
    lengths = np.linalg.norm(ours, axis=1)
    cosine = (ours * theirs).sum(1) / lengths / np.linalg.norm(theirs, axis=1)
    return np.linalg.norm(theirs - ours, axis=1) / lengths, cosine


def is_cut_elsewhere(image, data):
    """Does transformers, which rounds the crop's corner down, cut one pixel beside torchvision?"""
    edge = resized_px(data.image_px, data.eval_crop_fraction)[0]
    margins = [edge * side // min(image.size) - data.image_px for side in image.size]
    return any(round(margin / 2) != margin // 2 for margin in margins)


def test_timm_and_transformers_give_the_same_features_of_photographs_in_their_own_way(
    run, tmp_path, test_data
):
    transformers = pytest.importorskip("transformers")  # of extra hf
    with tarfile.open(test_data / "imagenet-fullsize-200.tar") as tar:
        files = [tar.extractfile(member) for member in tar if member.isfile()][:60]
        images = [Image.open(file).convert("RGB") for file in files]
    encoder = ijepa.load_encoder(run)
    ours = encoder.encode(images)
    for to in ("timm", "hf"):
        convert_to(to, run, tmp_path / to)
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        theirs = model(torch.stack([transform(image) for image in images])).numpy()
    differences, cosines = relative_differences(ours, theirs)
    assert differences.max() < 0.005
    assert cosines.min() > 0.9999
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    with torch.inference_mode():
        seen = processor(images, return_tensors="pt")
        theirs = model(**seen).last_hidden_state.mean(1).numpy()
    differences, cosines = relative_differences(ours, theirs)
    beside = np.array([is_cut_elsewhere(image, encoder.data) for image in images])
    assert 0 < beside.sum() < len(images) / 4
    assert differences[~beside].max() < 0.005
    assert cosines[~beside].min() > 0.9999
    assert differences[beside].max() < 0.3
    assert cosines[beside].min() > 0.95
