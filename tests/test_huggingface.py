"""Models of transformers, and their weights in the files of the methods, give the same features."""

import copy
import json
import pickle
import re
import sys

import pytest
import torch
from foreign_weights import DEPTH, DIM, HEADS, PATCH_PX, SIDE_PX, drawn, images
from safetensors.torch import load_file, save_file

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD
from ijepa.encoders.huggingface import known_provenance
from ijepa.encoders.spec import RELEASED, EncoderSpec, load_encoder
from ijepa.errors import IjepaError
from ijepa.paper import TABLES, pretraining_epochs
from ijepa.provenance import Provenance

transformers = pytest.importorskip("transformers")  # of extra hf
SIZE = {
    "hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
    "intermediate_size": 4 * DIM, "image_size": SIDE_PX, "patch_size": PATCH_PX,
    "layer_norm_eps": 1e-6,
}  # fmt: skip
SHARED = {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
MODELS = {  # class, its configuration's, settings, average of patches instead of the class token
    "ijepa": ("IJepaModel", "IJepaConfig", {}, True),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.75}, False),
    "vit_msn": ("ViTMSNModel", "ViTMSNConfig", {}, False),
    "data2vec-vision": ("Data2VecVisionModel", "Data2VecVisionConfig", SHARED, False),
    "dinov2": ("Dinov2Model", "Dinov2Config", {}, False),
    "vit": ("ViTModel", "ViTConfig", {}, False),
}


def model(name, seed=0):
    """A small network with weights that no initialisation would give."""
    cls, config, settings, _ = MODELS[name]
    network = getattr(transformers, cls)(getattr(transformers, config)(**SIZE, **settings))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(drawn(shapes, seed))
    return network.eval()


def expected(name, pixels):
    """(B, depth, DIM), every patch seen in order."""
    layers, averaged = expected_layers(name, pixels), MODELS[name][3]
    return torch.stack([one.mean(1) if averaged else one[:, 0] for one in layers], dim=1)


@torch.inference_mode()
def expected_layers(name, pixels):
    network = model(name)
    options = {}
    if name == "vit_mae":
        network.config.mask_ratio = 0.0
        options["noise"] = torch.arange((SIDE_PX // PATCH_PX) ** 2).float().expand(2, -1)
    found = network(pixel_values=pixels, output_hidden_states=True, **options)
    layers = [network.layernorm(tokens) for tokens in found.hidden_states[1:]]
    torch.testing.assert_close(layers[-1], found.last_hidden_state)
    return layers


def folder(tmp_path, name, processor=None, seed=0):
    path = tmp_path / name
    model(name, seed).save_pretrained(path)
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers_gives_what_transformers_gives(name, tmp_path):
    encoder = load_encoder(f"hf:{folder(tmp_path, name)}", image_px=SIDE_PX)
    copied = copy.deepcopy(encoder)
    pickled = pickle.loads(pickle.dumps(encoder))  # noqa: S301  # our own; transformers hooks what ran
    found = encoder.features(images(), DEPTH)
    torch.testing.assert_close(found, expected(name, images()), rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder.features(images(), DEPTH), found)  # nothing is drawn at random
    assert encoder.num_layers == DEPTH
    assert encoder.pooling.startswith("average" if MODELS[name][3] else "class token")
    features, tokens = encoder.features_and_tokens(images(), DEPTH)
    assert torch.equal(encoder.patch_tokens(images()), tokens)
    if name == "ijepa":  # our own network
        layer = expected_layers(name, images())[0]
        torch.testing.assert_close(encoder.patch_tokens(images(), 0), layer, rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(IjepaError, match="patch tokens of the last layer are the most that"):
            encoder.patch_tokens(images(), 0)
    assert torch.equal(features, found)
    whole = expected_layers(name, images())[-1]
    side = SIDE_PX // PATCH_PX
    assert encoder.token_shape() == (side, side, whole.shape[2])
    torch.testing.assert_close(tokens, whole[:, -(side**2) :], rtol=1e-5, atol=1e-5)
    for weight in copied.parameters():
        weight.zero_()
    assert not torch.equal(copied.features(images(), DEPTH), found)
    assert torch.equal(pickled.features(images(), DEPTH), found)


def test_what_was_trained_beside_an_encoder_is_left_out(tmp_path):
    """The hub's MAE keeps its decoder, and all names stand under `vit.`."""
    whole = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **SIZE,
            decoder_hidden_size=32,
            decoder_num_attention_heads=2,
            decoder_num_hidden_layers=1,
        )
    )
    whole.vit.load_state_dict(model("vit_mae").state_dict())
    whole.save_pretrained(tmp_path)
    found = load_encoder(f"hf:{tmp_path}").features(images(), DEPTH)
    torch.testing.assert_close(found, expected("vit_mae", images()), rtol=1e-5, atol=1e-5)


RENAMED = (  # from transformers' names to those of the methods' own code, first match first
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.", ""),
    (r"encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"attention\.(o_proj|output\.dense)\.", "attn.proj."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm", "norm"),
    (r"lambda_", "gamma_"),
)
PARTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "query": "q", "key": "k", "value": "v"}


def released(network):
    """The same weights by the names that the methods' own code gives them."""
    result, apart = {}, {}
    for key, value in network.state_dict().items():
        name = key
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        found = re.fullmatch(r"(.*?)\.attention\.(?:attention\.)?(\w+)\.(weight|bias)", name)
        if found:
            apart.setdefault((found[1], found[3]), {})[PARTS[found[2]]] = value
        else:
            result[name] = value
    for (block, kind), parts in apart.items():
        if len(parts) == 3:
            together = torch.cat([parts["q"], parts["k"], parts["v"]])
            result[f"{block}.attn.qkv.{kind}"] = together
        else:  # BEiT's keys have no bias
            result |= {f"{block}.attn.{name}_bias": value for name, value in parts.items()}
    return result


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("vit_mae", "mae", lambda w: {"model": w}),
        ("vit_msn", "msn", lambda w: {"target_encoder": {f"module.{k}": v for k, v in w.items()}}),
        (
            "data2vec-vision",
            "data2vec",
            lambda w: {
                "model": w
                | {"mask_token": torch.ones(1, 1, DIM), "lm_head.weight": torch.ones(DIM, DIM)}
                | {"rel_pos_bias.relative_position_index": torch.ones(17, 17).long()}
            },
        ),
    ],
)
def test_a_released_file_gives_what_transformers_gives_for_its_weights(name, kind, file, tmp_path):
    torch.save(file(released(model(name))), tmp_path / "weights.pth")
    encoder = load_encoder(f"{kind}:{tmp_path / 'weights.pth'}")
    found = encoder.features(images(), DEPTH)
    torch.testing.assert_close(found, expected(name, images()), rtol=1e-5, atol=1e-5)


def test_data2vec_takes_the_norm_that_a_mean_pooling_model_keeps_in_its_pooler(tmp_path):
    path = folder(tmp_path, "data2vec-vision")
    weights = load_file(path / "model.safetensors")
    moved = {k.replace("layernorm.", "pooler.layernorm.") if k.startswith("layernorm.") else k: v
             for k, v in weights.items()}  # fmt: skip
    save_file(moved, path / "model.safetensors", {"format": "pt"})
    found = load_encoder(f"hf:{path}").features(images(), DEPTH)
    torch.testing.assert_close(found, expected("data2vec-vision", images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ijepa", "vit_mae", "data2vec-vision", "dinov2"])
def test_another_image_size_interpolates_positions(name, tmp_path):
    path = folder(tmp_path, name)
    found = load_encoder(f"hf:{path}", image_px=48).features(images(side_px=48), 1)
    assert found.shape == (2, 1, DIM)
    with pytest.raises(IjepaError, match="no multiple of the patch's 8 pixels"):
        load_encoder(f"hf:{path}", image_px=50)


HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def test_a_processor_that_disagrees_with_the_training_is_warned_of(tmp_path, caplog):
    encoder = load_encoder(f"hf:{folder(tmp_path, 'ijepa', HALVES)}")
    assert "I-JEPA was trained with mean [0.485" in caplog.text
    assert (encoder.data.mean, encoder.data.std) == (IMAGENET_MEAN, IMAGENET_STD)
    caplog.clear()
    right = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    load_encoder(f"hf:{folder(tmp_path / 'right', 'ijepa', right)}")
    assert not caplog.records
    load_encoder(f"hf:{folder(tmp_path / 'raw', 'ijepa', {'do_normalize': False})}")
    assert "its processor says mean [0.0" in caplog.text
    for wrong in (0.5, [0.5], ["a", "b", "c"]):
        odd = folder(tmp_path / str(wrong), "vit", HALVES | {"image_mean": wrong})
        with pytest.raises(IjepaError, match=r"preprocessor_config\.json is not readable"):
            load_encoder(f"hf:{odd}")


def test_the_hubs_ijepa_is_said_to_be_the_context_encoder(tmp_path, caplog, monkeypatch):
    path = folder(tmp_path, "ijepa")
    name, small = "facebook/ijepa_vith14_1k", f"{DIM}x{DEPTH}x{HEADS}/{PATCH_PX}"
    monkeypatch.setattr("ijepa.encoders.huggingface.snapshot_download", lambda *_, **__: path)
    known = RELEASED["hub"][name].model_copy(update={"arch": small})
    monkeypatch.setitem(RELEASED["hub"], name, known)
    encoder = load_encoder(f"hf:{name}")
    assert "is the context encoder" in caplog.text
    assert (encoder.which, encoder.provenance) == ("context", known)
    unnamed = load_encoder(f"hf:{path}")
    assert (unnamed.which, unnamed.provenance) == (
        "context",
        Provenance(origin="hf", method="I-JEPA", arch=small),
    )


@pytest.mark.parametrize(
    ("name", "cls", "size", "arch", "epochs", "data"),
    [
        ("ijepa_vith14_1k", "IJepaConfig", (1280, 32, 14, 224), "ViT-H/14", 300, "IN1k"),
        ("ijepa_vith16_1k", "IJepaConfig", (1280, 32, 16, 448), "ViT-H/16 448", 300, "IN1k"),
        ("ijepa_vitg16_22k", "IJepaConfig", (1408, 40, 16, 224), "ViT-G/16", 600, "IN22k"),
        ("dino-vitb8", "ViTConfig", (768, 12, 8, 224), "ViT-B/8", 300, "IN1k"),
        ("vit-msn-base-4", "ViTMSNConfig", (768, 12, 4, 224), "ViT-B/4", 300, "IN1k"),
        ("vit-mae-huge", "ViTMAEConfig", (1280, 32, 14, 224), "ViT-H/14", None, None),
        ("ijepa_vith14_1k", "IJepaConfig", (384, 12, 14, 224), "ViT-S/14", None, None),
    ],
)
def test_a_name_of_the_hub_tells_the_papers_row_if_the_network_is_that_names(
    name, cls, size, arch, epochs, data
):
    dim, depth, patch_px, side_px = size
    config = getattr(transformers, cls)(
        hidden_size=dim, num_hidden_layers=depth, patch_size=patch_px, image_size=side_px
    )
    known = known_provenance(f"facebook/{name}", config)
    assert (known.arch, known.epochs, known.data) == (arch, epochs, data)
    if epochs:
        rows = [row for t in TABLES for row in t.rows if row.method == known.method]
        rows = [row for row in rows if row.arch == arch]
        assert any(epochs in pretraining_epochs(row) for row in rows)


def test_a_plain_vit_is_normalised_as_its_processor_says(tmp_path, caplog):
    encoder = load_encoder(f"hf:{folder(tmp_path, 'vit', HALVES)}")
    assert (encoder.data.mean, encoder.data.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    load_encoder(f"hf:{folder(tmp_path / 'unknown', 'vit')}")
    assert "no preprocessor_config.json" in caplog.text


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("ijepa", ("norm.bias missing", "extra.weight is no weight", "norm.bias is")),
        ("vit", ("layernorm.bias missing", "extra.weight unexpected", "does not load|another sha")),
    ],
)
def test_nothing_is_partly_loaded(tmp_path, name, messages):
    path = folder(tmp_path, name)
    weights = load_file(path / "model.safetensors")
    fewer = {key: value for key, value in weights.items() if key != "layernorm.bias"}
    more, other = ({"extra.weight": torch.ones(2)}, {"layernorm.bias": torch.ones(2)})
    for broken, message in zip((fewer, weights | more, weights | other), messages, strict=True):
        save_file(broken, path / "model.safetensors", {"format": "pt"})
        with pytest.raises(IjepaError, match=message) as caught:
            load_encoder(f"hf:{path}")
        assert "\n" not in str(caught.value)
    (path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(IjepaError, match=r"does not load|model\.safetensors"):
        load_encoder(f"hf:{path}")


def test_a_configuration_that_makes_no_network_is_refused(tmp_path):
    path = folder(tmp_path, "vit")
    for odd in ({"patch_size": 0}, {"hidden_size": None}):
        folder(tmp_path, "vit")
        settings = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(settings | odd))
        with pytest.raises(IjepaError, match="does not load") as caught:
            load_encoder(f"hf:{path}")
        assert "\n" not in str(caught.value)


def test_what_is_no_model_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(IjepaError, match="neither a folder nor in the cache"):
        load_encoder("hf:facebook/no-such-model-of-anybody")
    with pytest.raises(IjepaError, match=r"there is no config.json"):
        load_encoder(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(IjepaError, match="is a bert; there are ijepa, vit_mae"):
        load_encoder(f"hf:{tmp_path}")
    with pytest.raises(IjepaError, match="leave --which context out"):
        load_encoder(f"hf:{tmp_path}", which="context")


def test_the_fingerprint_follows_weights_configuration_and_processor(tmp_path):
    path = folder(tmp_path, "vit", HALVES)
    prints = [EncoderSpec.parse(f"hf:{path}").fingerprint()]
    (path / "preprocessor_config.json").write_text("{}")
    prints.append(EncoderSpec.parse(f"hf:{path}").fingerprint())
    folder(tmp_path, "vit", HALVES, seed=1)
    prints.append(EncoderSpec.parse(f"hf:{path}").fingerprint())
    assert len(set(prints)) == 3


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    path = folder(tmp_path, "vit")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(IjepaError, match=r"pip install transformers"):
        load_encoder(f"hf:{path}")
