"""Released files of the paper's baselines give the features of the published networks."""

import argparse
import copy
import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
import timm
import torch
from foreign_weights import (
    DEPTH,
    DIM,
    PATCH_PX,
    SIDE_PX,
    beit_shapes,
    byol_names,
    drawn,
    images,
    pad_fixed,
    pad_same,
    plain_resnet,
    plain_vit,
    resnet_shapes,
    simclr_names,
    vit_shapes,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from runs import CPU
from safetensors.torch import save_file
from typer.testing import CliRunner

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, ExtractConfig, PixelStats, Runtime
from ijepa.encoders.baselines import (
    released_provenance,
    resnet_arch,
    timm_resnet,
    vit_network,
)
from ijepa.encoders.spec import CATALOGUE, KINDS, RELEASED, EncoderSpec, load_encoder
from ijepa.encoders.timm import provenance_of
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.store import open_features
from ijepa.paper import TABLES, pretraining_data, pretraining_epochs
from ijepa.provenance import paper_arch
from ijepa.shard import shard
from ijepa.weights import check_weights, vit_size
from ijepa_cli.main import app

OPTIONS = argparse.Namespace(lr=1e-3)  # released training checkpoints keep theirs
SEEN = "class token after the final norm"


def prefixed(weights, prefix):
    return {f"{prefix}{name}": value for name, value in weights.items()}


def vit(seed=0, **size):
    return drawn(vit_shapes(**size), seed)


HEAD = {"head.mlp.0.weight": torch.ones(2, DIM)}
DECODER = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, DIM)}
FILES = {  # what each method saves, around the weights of its encoder
    "mae": lambda w: {"model": w},
    "mae with decoder": lambda w: {"model": w | DECODER, "args": OPTIONS, "epoch": 1599},
    "dino": lambda w: w,
    "dino full": lambda w: {
        "student": prefixed(vit(9), "module.backbone."),
        "teacher": prefixed(w, "backbone.") | HEAD,
        "args": OPTIONS,
    },
    "ibot": lambda w: {"state_dict": w | {"masked_embed": torch.ones(1, DIM)}},
    "ibot full": lambda w: {
        "student": prefixed(vit(9), "module.backbone."),
        "teacher": prefixed(w, "module.backbone.") | prefixed(HEAD, "module."),
    },
    "msn": lambda w: {
        "encoder": prefixed(vit(9), "module."),
        "target_encoder": prefixed(w | {"fc.fc1.weight": torch.ones(2, DIM)}, "module."),
        "prototypes": torch.ones(4, 2),
        "epoch": 300,
    },
    "cae": lambda w: {
        "model": prefixed(w, "encoder.")
        | prefixed(drawn(beit_shapes(), 9), "teacher.")
        | {"mask_token": torch.ones(1, 1, 8), "pretext_neck.norm.weight": torch.ones(8)},
        "args": OPTIONS,
    },
}


def saved(tmp_path, body, name="weights.pth"):
    path = tmp_path / name
    torch.save(body, path)
    return path


def loaded(path, kind, **options):
    return load_encoder(f"{kind}:{path}", **options)


@pytest.mark.parametrize("form", FILES)
def test_a_released_transformer_gives_the_published_forward_pass(form, tmp_path):
    kind = form.split()[0]
    weights = drawn(beit_shapes()) if kind == "cae" else vit()
    encoder = loaded(saved(tmp_path, FILES[form](weights)), kind)
    found = encoder.features(images(), DEPTH)
    torch.testing.assert_close(found, plain_vit(weights, images()), rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder.features(images(), 1), found[:, -1:])
    assert (encoder.data.image_px, encoder.num_layers, encoder.pooling) == (SIDE_PX, DEPTH, SEEN)
    assert (encoder.data.mean, encoder.data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert encoder.data.eval_crop_fraction == 0.875
    assert encoder.provenance.method == KINDS[kind].method


@pytest.mark.parametrize("form", ["dino full", "ibot full", "msn"])
def test_which_chooses_between_two_encoders_of_a_file(form, tmp_path):
    kind, path = form.split()[0], saved(tmp_path, FILES[form](vit()))
    other = loaded(path, kind, which="context")
    expected = plain_vit(vit(9), images())
    torch.testing.assert_close(other.features(images(), DEPTH), expected, rtol=1e-5, atol=1e-5)
    assert other.weights_sha256 != loaded(path, kind).weights_sha256
    specs = [EncoderSpec.parse(f"{kind}:{path}", which=which) for which in ("target", "context")]
    assert specs[0].fingerprint() != specs[1].fingerprint()


RESNETS = {  # names, padding, file, and what images are normalised with
    "byol": (
        byol_names, pad_same, lambda w: w | {"fc.weight": torch.ones(3, 256)},
        (IMAGENET_MEAN, IMAGENET_STD),
    ),
    "simclrv2": (
        simclr_names,
        pad_fixed,
        lambda w: {
            "resnet": w | {"fc.weight": torch.ones(3, 256), "fc.bias": torch.ones(3)}
            | {"net.0.1.0.num_batches_tracked": torch.tensor(7)},
            "head": {"layers.0.weight": torch.ones(3, 256)},
        },
        ((0, 0, 0), (1, 1, 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("side_px", [64, 75])
@pytest.mark.parametrize("kind", RESNETS)
def test_a_converted_resnet_gives_the_published_forward_pass(kind, side_px, tmp_path):
    names, pad, file, normalised = RESNETS[kind]
    weights = drawn(resnet_shapes(names))
    encoder = loaded(saved(tmp_path, file(weights)), kind)
    assert (encoder.data.mean, encoder.data.std) == normalised
    found = encoder.features(images(side_px=side_px), 1)[:, 0]
    expected = plain_resnet(weights, names, images(side_px=side_px), pad)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert encoder.num_layers == 1
    assert encoder.pooling == "average of the last feature map"
    with pytest.raises(IjepaError, match="has no patch tokens; --tokens needs a Vision Transf"):
        encoder.features_and_tokens(images(side_px=side_px))


@pytest.mark.parametrize(
    ("kind", "depths", "width", "arch"),
    [
        ("simclrv2", [3, 8, 36, 3], 2, "RN152 (2x)"),
        ("byol", [3, 24, 36, 3], 2, "RN200 (2x)"),
        ("byol", [3, 4, 6, 3], 1, "RN50"),
    ],
)
def test_the_papers_resnets_are_named_by_depth_and_width(kind, depths, width, arch):
    shapes = resnet_shapes(RESNETS[kind][0], depths, 64 * width)
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    assert timm_resnet(kind, weights, "a file")[1:] == (depths, width)
    assert resnet_arch(depths, width) == arch


LARGE = {  # dim, depth, patch, heads, arch
    "mae": (1280, 32, 14, 16, "ViT-H/14"),
    "dino": (768, 12, 8, 12, "ViT-B/8"),
    "ibot": (1024, 24, 16, 16, "ViT-L/16"),
    "msn": (768, 12, 4, 12, "ViT-B/4"),
    "data2vec": (1024, 24, 16, 16, "ViT-L/16"),
    "cae": (1024, 24, 16, 16, "ViT-L/16"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_sizes_of_the_papers_rows_are_read_from_their_shapes(kind):
    dim, depth, patch_px, heads, arch = LARGE[kind]
    size = {"dim": dim, "depth": depth, "patch_px": patch_px, "grid": 224 // patch_px}
    if kind in ("data2vec", "cae"):
        shapes = beit_shapes(**size, heads=heads, shared=kind == "data2vec")
    else:
        shapes = vit_shapes(**size)
    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
        read = vit_size(weights, "a file", prefix_tokens=1)
        network = vit_network(kind, read, weights)
    check_weights(network, weights, "a file")
    assert network.blocks[0].attn.num_heads == heads
    assert paper_arch((read.dim, read.depth), read.patch_px) == arch
    rows = {row.arch for table in TABLES for row in table.rows if row.method == KINDS[kind].method}
    assert arch in rows


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


SIMCLR, BEIT = drawn(resnet_shapes(simclr_names)), drawn(beit_shapes())
TABLE = "rel_pos_bias.relative_position_bias_table"
REFUSED = [  # kind, what its file holds, message
    ("mae", {"model": without(vit(), "norm.bias")}, "another architecture: norm.bias missing"),
    ("mae", {"model": vit() | {"fc_norm.bias": torch.ones(3)}}, "fc_norm.bias unexpected"),
    (
        "mae",
        {"model": vit() | {"cls_token": torch.ones(1, 2, DIM)}},
        r"cls_token is \(1, 2, 128\), ",
    ),
    ("mae", {"model": without(vit(), "pos_embed")}, "no Vision Transformer: pos_embed .* missing"),
    ("mae", {"model": vit() | {"pos_embed": torch.ones(1, 7, DIM)}}, "expected a square grid"),
    ("mae", {"optimizer": {}, "epoch": 3}, "holds optimizer, epoch; expected weights under model"),
    ("mae", {"model": vit() | {"norm.bias": 3}}, "holds norm.bias; expected weights"),
    ("mae", {"model": vit() | {"patch_embed.proj.weight": torch.ones(3)}}, "no Vision Transf"),
    ("mae", {"model": {}}, "holds nothing; expected weights under model: facebookresearch/mae"),
    ("data2vec", {"model": BEIT}, r"rel_pos_bias\..* missing"),
    (
        "data2vec",
        {"model": without(BEIT, "pos_embed") | {TABLE: torch.ones(299**2 + 3, 2)}},
        "expected a square grid",
    ),
    ("byol", SIMCLR, "no such ResNet of four stages"),
    ("simclrv2", {"resnet": SIMCLR | {"a.mixing_conv.0.weight": torch.ones(1)}}, "selective kern"),
    ("simclrv2", {"resnet": without(SIMCLR, "net.1.blocks.0.net.3.0.bias")}, "norm2.bias missing"),
]


@pytest.mark.parametrize(("kind", "body", "message"), REFUSED)
def test_what_is_no_such_encoder_is_refused_in_one_line(kind, body, message, tmp_path):
    path = saved(tmp_path, body)
    with pytest.raises(IjepaError, match=message) as caught:
        loaded(path, kind)
    assert "\n" not in str(caught.value)
    if kind not in ("data2vec", "simclrv2") and "model" in body:
        with pytest.raises(IjepaError, match="holds no second encoder"):
            loaded(path, kind, which="context")


def test_another_image_size_interpolates_positions(tmp_path):
    path = saved(tmp_path, {"model": vit()})
    encoder = loaded(path, "mae", image_px=48)
    assert encoder.data.image_px == 48
    assert encoder.features(images(side_px=48), 2).shape == (2, 2, DIM)
    assert encoder.weights_sha256 == loaded(path, "mae").weights_sha256
    with pytest.raises(IjepaError, match="no multiple of the patch's 8 pixels"):
        loaded(path, "mae", image_px=50)


def test_extraction_says_what_pooling_and_method_made_the_features(shards, tmp_path):
    path = saved(tmp_path, {"model": vit()})
    config = ExtractConfig(encoder=f"mae:{path}", layers=2)
    result = extract(shards, tmp_path / "f.h5", config, CPU)
    assert (result.layers, result.dim) == (2, DIM)
    header = open_features(tmp_path / "f.h5").header
    assert (header.pooling, header.layers, header.provenance.method) == (SEEN, (1, 2), "MAE")
    assert extract(shards, tmp_path / "f.h5", config, CPU).cached
    saved(tmp_path, {"model": vit(1)})
    assert not extract(shards, tmp_path / "f.h5", config, CPU).cached


SMALL = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def timm_file(tmp_path, name, seed=0, **options):
    model = timm.create_model(name, **options)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(drawn(shapes, seed, 0.02))
    save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    return model.eval(), tmp_path / f"{name}.safetensors"


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "num_layers", "tokens"),
    [
        (SMALL, 12, (14, 14, 192)),
        ("test_vit3.r160_in1k", 1, (10, 10, 96)),  # pooled by attention
        ("resnet18.a1_in1k", 1, None),
    ],
)
def test_a_model_of_timm_gives_what_timm_gives_before_its_head(name, num_layers, tokens, tmp_path):
    model, path = timm_file(tmp_path, name)
    encoder = load_encoder(f"timm:{name}@{path}")
    pixels = images(side_px=encoder.data.image_px)[:1]
    expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    found = encoder.features(pixels, 1)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    cfg = model.pretrained_cfg
    assert (encoder.data.mean, encoder.data.eval_crop_fraction) == (cfg["mean"], cfg["crop_pct"])
    assert encoder.num_layers == num_layers
    if tokens:
        found = encoder.patch_tokens(pixels)
        torch.testing.assert_close(found, model.forward_features(pixels)[:, 1:])
        assert torch.equal(found, encoder.features_and_tokens(pixels)[1])
        assert encoder.token_shape() == tokens


@pytest.mark.parametrize("body", [{}, {"model": {}}, {"epoch": 3}])
def test_a_named_file_without_weights_is_refused_and_no_other_is_fetched(
    tmp_path, monkeypatch, body
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = saved(tmp_path, body)
    if not body:
        save_file({}, path)
    with pytest.raises(IjepaError, match=r"weights\.pth holds no weights"):
        load_encoder(f"timm:{SMALL}@{path}")


@pytest.mark.parametrize("kind", [f"timm:{SMALL}@", "dino:"])
def test_prefixes_of_compiled_networks_are_taken_off_weights_of_others(tmp_path, kind):
    weights = vit() if kind == "dino:" else timm_file(tmp_path, SMALL)[0].state_dict()
    bare = load_encoder(kind + str(saved(tmp_path, weights, "bare.pth")))
    box = "teacher" if kind == "dino:" else "model"
    wrapped = saved(tmp_path, {box: prefixed(weights, "module._orig_mod.")})
    assert load_encoder(kind + str(wrapped)).weights_sha256 == bare.weights_sha256


def test_weights_of_another_timm_model_are_refused(tmp_path):
    _, path = timm_file(tmp_path, SMALL)
    with pytest.raises(IjepaError, match="another architecture"):
        load_encoder(f"timm:vit_tiny_patch16_384.augreg_in21k_ft_in1k@{path}")
    short = saved(tmp_path, drawn({"cls_token": (1, 1, 192)}))
    with pytest.raises(IjepaError, match=r"blocks\.0\.attn\.proj\.bias missing; .* more\."):
        load_encoder(f"timm:{SMALL}@{short}")
    flat = saved(tmp_path, {"pos_embed": torch.ones(192)})
    with pytest.raises(IjepaError, match=r"pos_embed is \(192,\), expected \(1, 197, 192\)"):
        load_encoder(f"timm:{SMALL}@{flat}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224.nobody", r"no model .vit_tiny_patch16_224.nobody. with"),
        ("vit_tiny_patch16_224@", "vit_tiny_patch16_224@ names no file"),
        ("vit_tiny_patch16_224@.", "is a folder, not a file of weights"),
        ("@weights.pth", "has no model ''"),
    ],
)
def test_a_name_that_timm_does_not_have_is_refused_in_one_line(name, message):
    for ask in (load_encoder, lambda it: EncoderSpec.parse(it).fingerprint()):
        with pytest.raises(IjepaError, match=message) as caught:
            ask(f"timm:{name}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mixer_s32_224", "maxvit_nano_rw_256"])
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_an_image_size_that_a_network_cannot_take_is_refused(name, tmp_path):
    _, path = timm_file(tmp_path, name)
    with pytest.raises(IjepaError, match="does not take --image-size 250 "):
        load_encoder(f"timm:{name}@{path}", image_px=250)


def test_weights_that_cannot_be_fetched_are_never_made_up(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise TimeoutError("timed out")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.create_connection", unreachable)
    for name, why in ((IJEPA, "timed out"), (SMALL, "Hub")):
        line = rf"cannot be fetched \(.*{why}.*\)\. Fetch .* name the file: timm:{name}@FILE"
        with pytest.raises(IjepaError, match=line):
            load_encoder(f"timm:{name}")
    with pytest.raises(IjepaError, match="has no model 'vit_colossal'"):
        load_encoder("timm:vit_colossal")
    with pytest.raises(IjepaError, match="There is no file"):
        EncoderSpec.parse(f"timm:{SMALL}@{tmp_path}/none.pth").fingerprint()


def test_a_hub_that_is_not_reached_is_not_asked_for_another_file(monkeypatch):
    def download(repo, name, revision):
        if name != "model.safetensors":
            pytest.fail("asked again")
        raise LocalEntryNotFoundError("the network is gone")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(IjepaError, match="the network is gone"):
        load_encoder(f"timm:{SMALL}")


def test_weights_that_no_cache_has_are_fetched_from_the_hub(tmp_path, monkeypatch):
    asked = []
    _, path = timm_file(tmp_path, SMALL)

    def download(repo, name, revision):
        asked.append((repo, name, revision))
        if name == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_encoder(f"timm:{SMALL}").num_layers == 12
    names = ("model.safetensors", "pytorch_model.bin")
    assert asked == [(f"timm/{SMALL}", name, None) for name in names]


def test_weights_at_an_address_are_fetched_once_into_the_cache_of_torch(tmp_path, monkeypatch):
    _, path = timm_file(tmp_path, SMALL)
    cfg = dataclasses.replace(timm.get_pretrained_cfg(SMALL), hf_hub_id=None, url=path.as_uri())
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda _: cfg)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    first = load_encoder(f"timm:{SMALL}").weights_sha256
    path.rename(tmp_path / "moved.safetensors")
    assert load_encoder(f"timm:{SMALL}").weights_sha256 == first
    assert [one.name for one in tmp_path.glob("cache/hub/checkpoints/*")] == [path.name]


def test_pretrained_weights_come_from_the_hubs_cache(tmp_path, monkeypatch):
    _, path = timm_file(tmp_path, SMALL)
    seen = {}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, name, revision: seen.setdefault((repo, name), str(path)),
    )
    names = (f"timm:{SMALL}", f"timm:{SMALL}@{path}")
    assert len({load_encoder(name).weights_sha256 for name in names}) == 1
    assert len({EncoderSpec.parse(name).fingerprint() for name in names}) == 1
    assert list(seen) == [(f"timm/{SMALL}", "model.safetensors")]


IJEPA = "vit_huge_patch14_gap_224.in1k_ijepa"


@pytest.fixture
def _small_ijepa(monkeypatch):
    monkeypatch.setattr("ijepa.encoders.timm.timm.create_model", small_ijepa)


@pytest.mark.usefixtures("_small_ijepa")
def test_ijepa_through_timm_takes_the_target_encoder_unless_told_otherwise(tmp_path):
    """timm itself takes the context encoder of a published file."""
    both = {"encoder": ijepa_weights(1), "target_encoder": ijepa_weights(2), "epoch": 300}
    path = saved(
        tmp_path, {k: prefixed(v, "module.") if k != "epoch" else v for k, v in both.items()}
    )
    for which, key in (("target", "target_encoder"), ("context", "encoder")):
        encoder = load_encoder(f"timm:{IJEPA}@{path}", which=which)
        network = small_ijepa(IJEPA)
        network.load_state_dict(both[key])
        expected = network.eval().forward_head(network.forward_features(images()))
        found = encoder.features(images(), 1)[:, 0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert encoder.pooling == "average of patch tokens after the final norm"
        assert (encoder.provenance.method, encoder.provenance.data) == ("I-JEPA", "IN1k")
        assert encoder.data.eval_crop_fraction == 0.875


@pytest.mark.usefixtures("_small_ijepa")
def test_a_timm_file_of_one_encoder_is_the_contexts_unless_it_says_other(tmp_path):
    """Else what timm itself loads would stand in a row of the paper, whose encoder is another."""
    notes = {"target": {"ijepa": json.dumps({"part": "target_encoder"})}, "context": None}
    for which, noted in notes.items():
        save_file(ijepa_weights(1), tmp_path / f"{which}.safetensors", noted)
        assert load_encoder(f"timm:{IJEPA}@{tmp_path / which}.safetensors").which == which


def ijepa_weights(seed):
    return drawn({k: v.shape for k, v in small_ijepa("x").state_dict().items()}, seed)


def small_ijepa(name, **options):
    """timm's network of that name in every setting but its size."""
    from timm.models.vision_transformer import _create_vision_transformer

    size = {"img_size": SIDE_PX, "patch_size": PATCH_PX, "embed_dim": 64, "depth": 2}
    settings = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_heads": 2}
    options = {"num_classes": 0, **options}
    return _create_vision_transformer(IJEPA, **size, **settings, **options)


@pytest.mark.parametrize(
    ("epoch", "epochs", "data"), [(None, 1600, "IN1k"), (1599, 1600, "IN1k"), (399, 399, None)]
)
def test_a_file_stands_for_the_papers_row_unless_it_says_another_epoch(epoch, epochs, data, caplog):
    caplog.set_level("INFO")
    asked = EncoderSpec.parse("mae:weights.pth")
    found = released_provenance(asked, epoch, "ViT-H/14")
    assert (found.method, found.arch) == ("MAE", "ViT-H/14")
    assert (found.epochs, found.data) == (epochs, data)
    assert ("taken for the released weights" in caplog.text) == (data == "IN1k")
    assert released_provenance(asked, None, "64x2/8").epochs is None


@pytest.mark.parametrize("name", RELEASED["timm"])
def test_names_of_timm_tell_networks_that_are_in_the_papers_tables(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    known, seen = provenance_of(model, name), provenance_of(model, f"{name}.unknown")
    assert (known.arch, seen.method) == (seen.arch, None)
    if known.epochs:
        assert any(
            (known.method, known.arch, known.data) == (row.method, row.arch, pretraining_data(row))
            and known.epochs in pretraining_epochs(row)
            for table in TABLES
            for row in table.rows
        )


def test_the_catalogue_has_every_kind_and_the_papers_nine_methods():
    entries = CATALOGUE.encoders
    named = {entry.encoder.partition(":")[0] for entry in entries}
    assert set(KINDS) <= named
    methods = {row.method for table in TABLES for row in table.rows if row.group}
    assert {entry.method for entry in entries} - {None} == methods
    others = [entry for entry in entries if entry.encoder.split(":")[0] in KINDS]
    assert all(entry.source and entry.licence and entry.licence_read for entry in others)
    for entry in entries:
        assert bool(entry.method) == bool(entry.paper)


def test_the_command_lists_them_for_people_and_machines():
    shown = CliRunner().invoke(app, ["encoders"])
    assert shown.exit_code == 0
    assert "mae:FILE" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["encoders", "--json"]).stdout)
    mae = next(one for one in told["encoders"] if one["encoder"] == "mae:FILE")
    assert mae["paper"]["ViT-B/16"][0] == 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Image files of several kinds and sizes, in one class folder of a split."""
    folder = tmp_path_factory.mktemp("pictures") / "train" / "things"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kinds = {"a.jpg": "RGB", "b.png": "RGB", "c.png": "RGBA", "d.webp": "RGB", "e.jpg": "CMYK"}
    for number, (name, mode) in enumerate(kinds.items()):
        pixels = rng.integers(0, 256, (40 + 9 * number, 70 - 5 * number, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / name)
    deep = rng.integers(0, 2**16, (50, 41), np.uint16)
    Image.fromarray(deep).save(folder / "f.png")
    return sorted(folder.iterdir())


def test_features_of_image_files_are_those_that_extract_writes(pictures, tmp_path):
    shard(pictures[0].parent.parent.parent, tmp_path / "shards", runtime=Runtime(workers=1))
    name = "random:48x3x3/8@32"
    config = ExtractConfig(encoder=name, split="train", layers=2, dtype="float32")
    extract(str(tmp_path / "shards"), str(tmp_path / "f.h5"), config, CPU)
    encoder = load_encoder(name)
    with open_features(tmp_path / "f.h5") as stored:
        keys = [f"train/things/{path.stem}" for path in pictures]
        assert [key.partition(".")[0] for key in stored.keys] == keys
        last, two = encoder.encode(pictures), encoder.encode(map(str, pictures), layers=2)
        np.testing.assert_allclose(last, stored.numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            two, stored.values.reshape(len(stored), -1), rtol=1e-6, atol=1e-6
        )
    assert (last.dtype, last.shape) == (np.float32, (len(pictures), encoder.dim))
    one = encoder(encoder.transform(pictures[0])[None])
    np.testing.assert_allclose(one.numpy(), last[:1], rtol=1e-5, atol=1e-5)
    opened = [Image.open(path) for path in pictures]
    opened.pop(4)  # of CMYK, two decoders differ by one level of 255
    same = np.delete(last, 4, axis=0)
    twice = encoder.encode(opened + opened, batch_size=4)
    np.testing.assert_allclose(twice, np.concatenate([same, same]), rtol=1e-5, atol=1e-5)


def test_one_image_is_a_batch_of_one_and_patch_tokens_average_to_its_features(pictures):
    encoder = load_encoder("random:48x3x3/8@32", image_px=40)
    found = encoder.encode(pictures[0])
    assert found.shape == (1, 48)
    np.testing.assert_array_equal(encoder.encode(np.asarray(Image.open(pictures[0]))), found)
    patches = encoder.encode_patches(Image.open(pictures[0]))
    assert patches.shape == (1, 25, 48)
    assert encoder.grid == (5, 5)
    np.testing.assert_allclose(patches.mean(1), found, rtol=1e-5, atol=1e-6)
    view = encoder.transform(pictures[0])[None]
    assert torch.equal(encoder.patch_tokens(view), encoder.patch_tokens(view, 2))
    with pytest.raises(IjepaError, match="layers 0 to 2, not 3"):
        encoder.patch_tokens(view, 3)


def test_an_encoder_computes_where_and_in_what_its_weights_are(pictures):
    encoder = load_encoder("random:48x3x3/8@32", device="cpu")
    before = encoder.encode(pictures)
    half = encoder.to(torch.bfloat16).encode(pictures)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - before).max() < 0.1
    on_meta = encoder.to("meta")
    with pytest.raises(RuntimeError, match="meta"):  # which holds no values
        on_meta.encode(pictures)


def a_small_one(kind, tmp_path):
    """An encoder of each way to pool features."""
    if kind == "byol":
        names, _, file, _ = RESNETS["byol"]
        return loaded(saved(tmp_path, file(drawn(resnet_shapes(names)))), "byol", image_px=64)
    if kind == "mae":
        return loaded(saved(tmp_path, FILES["mae"](vit())), "mae")
    if kind == "timm":
        return load_encoder(f"timm:resnet18.a1_in1k@{timm_file(tmp_path, 'resnet18.a1_in1k')[1]}")
    return load_encoder(kind)


@pytest.mark.parametrize("kind", ["random:48x3x3/8@32", "mae", "byol", "timm"])
def test_a_copied_or_pickled_encoder_computes_with_its_own_weights(kind, tmp_path):
    encoder = a_small_one(kind, tmp_path)
    pixels = torch.randn(1, 3, *encoder.data.image_size, generator=torch.Generator().manual_seed(0))
    copied, expected = copy.deepcopy(encoder), encoder(pixels)
    for weight in copied.parameters():
        weight.zero_()
    assert not torch.equal(copied(pixels), expected)
    again = pickle.loads(pickle.dumps(encoder))  # noqa: S301  # our own
    assert torch.equal(again(pixels), expected)


def test_the_width_of_features_is_computed_once_a_size(tmp_path, monkeypatch):
    encoder, calls = a_small_one("byol", tmp_path), []
    monkeypatch.setattr(
        encoder, "_pool", lambda *_: calls.append(1) or (torch.zeros(1, 1, 7), None)
    )
    assert [encoder.dim, encoder.dim, f"{encoder}".count("dim=7")] == [7, 7, 1]
    assert len(calls) == 1
    pixels = load_encoder("pixels")
    assert pixels.dim == 3 * 16**2
    pixels.resize(8)
    assert pixels.dim == 3 * 8**2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"which": "taget"}, "which is 'taget' .did you mean 'target'.*; give target or context"),
        ({"image_px": 0}, "image_px is 0; give a side of 1 pixel or more"),
        ({"image_px": (32, -8)}, r"image_px is \(32, -8\); give a side"),
    ],
)
@pytest.mark.parametrize("name", ["random:48x3x3/8@32", "pixels"])
def test_an_option_without_meaning_is_refused_in_one_line(name, options, words):
    with pytest.raises(IjepaError, match=words) as error:
        load_encoder(name, **options)
    assert "\n" not in str(error.value)


def test_an_encoder_without_a_projection_is_not_adapted_to_other_channels():
    pixels = PixelStats(channels=2, dtype="uint8", mean=(0.5, 0.5), std=(0.2, 0.2), images=9)
    encoder = load_encoder("pixels")
    with pytest.raises(IjepaError, match="has no projection of RGB to adapt to the shard set"):
        encoder.fit_channels(pixels)
    assert encoder.data.num_channels == 3


def test_a_batch_of_no_image_is_refused(pictures):
    for batch_size in (0, -1):
        with pytest.raises(IjepaError, match=f"batch_size is {batch_size}; give 1 or more"):
            load_encoder("pixels").encode(pictures, batch_size=batch_size)


@pytest.mark.parametrize("name", ["random:48x3x3/8@32", "pixels"])
def test_an_encoder_shows_in_one_line_what_it_is(name):
    encoder = load_encoder(name)
    assert encoder.dim == len(encoder.encode(np.zeros((9, 9, 3), np.uint8))[0])
    shown = repr(encoder)
    for words in (encoder.name, f"dim={encoder.dim}", f"num_layers={encoder.num_layers}", "cpu"):
        assert words in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "no images to encode"),
        ([torch.zeros(3, 32, 32)], "not a Tensor; for tensors of normalised images"),
        (np.zeros((2, 32, 32)), r"not an array of shape \(2, 32, 32\) and type float64"),
        ("b.jpg", "no image file .*b.jpg .did you mean 'a.jpg'"),
        ("", "is a folder; give its image files"),
        ("broken.jpg", "broken.jpg: not an image"),
        (3, "not a int;"),
        (None, "not a NoneType;"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path, images, words):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").write_text("text")
    images = tmp_path / images if isinstance(images, str) else images
    with pytest.raises(IjepaError, match=words) as error:
        load_encoder("pixels").encode(images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine.p", "did you mean 'mine.pt'"),
        ("dyno:x", "did you mean 'dino:x'"),
        ("pixel", "did you mean 'pixels'"),
        *[(name, "does not end in a name") for name in ("", "/", "random:")],
        ("begun", "is a folder, no finished run"),
    ],
)
def test_what_names_no_encoder_is_refused_with_the_nearest_one(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pt").touch()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    for ask in (load_encoder, lambda it: EncoderSpec.parse(it).fingerprint()):
        with pytest.raises(IjepaError, match=words):
            ask(name)


@pytest.mark.parametrize("name", ["mae", "hf", "timm"])
def test_a_run_may_be_called_as_a_kind_is(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).symlink_to(run)
    assert load_encoder(name).weights_sha256 == load_encoder(run).weights_sha256


def test_a_checkpoint_is_of_the_run_that_it_lies_in_however_its_path_is_written(
    run, tmp_path, monkeypatch
):
    known = load_encoder(run).provenance
    for place, path in ((run, "checkpoints/last.pt"), (run / "checkpoints", "last.pt")):
        monkeypatch.chdir(place)
        assert load_encoder(path).provenance == known
    copied = tmp_path / "last.pt"
    copied.write_bytes((run / "checkpoints" / "last.pt").read_bytes())
    monkeypatch.chdir(run / "checkpoints")
    for path in (copied, f"../../{os.path.relpath(copied, run.parent)}"):
        assert load_encoder(path).provenance.shards is None
        assert load_encoder(path).name == f"{path} (target)"
