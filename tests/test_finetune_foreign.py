"""Fine-tuning takes published files and Vision Transformers of others, or says which it takes."""

import re
from pathlib import Path

import pytest
import torch
from foreign_weights import (
    DEPTH,
    DIM,
    beit_shapes,
    drawn,
    images,
    resnet_shapes,
    simclr_names,
    vit_shapes,
)
from runs import CPU
from test_finetune import config

from ijepa.encoders.pooling import CLASS_TOKEN, PATCH_AVERAGE
from ijepa.encoders.spec import EncoderSpec, load_encoder
from ijepa.errors import IjepaError
from ijepa.finetune import finetune, plan_finetune
from ijepa.train.classifier import Classifier, layer_of, parameter_groups

TINY = Path(__file__).parent / "parity" / "official-tiny.pth.tar"
FILES = {  # kind: what its file holds
    "mae": lambda: {"model": drawn(vit_shapes())},
    "data2vec": lambda: {"model": drawn(beit_shapes(shared=True))},
    "cae": lambda: {"model": {f"encoder.{k}": v for k, v in drawn(beit_shapes()).items()}},
}


def saved(folder, kind):
    torch.save(FILES[kind](), folder / f"{kind}.pth")
    return f"{kind}:{folder / f'{kind}.pth'}"


def classifier(name, num_classes=8, drop_path=0.0):
    found = EncoderSpec.parse(name).trainable()
    generator = torch.Generator().manual_seed(0)
    class_token = found.pooling == CLASS_TOKEN
    return Classifier(found.network, num_classes, drop_path, generator, class_token=class_token)


@pytest.mark.parametrize("kind", FILES)
def test_a_classifier_begins_with_the_features_that_are_extracted(kind, tmp_path):
    name = saved(tmp_path, kind)
    model = classifier(name).eval()
    model.head = torch.nn.Identity()
    expected = load_encoder(name).features(images(), 1)[:, 0]
    torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FILES)
def test_layers_of_others_learn_as_beit_lets_them(kind, tmp_path):
    model = classifier(saved(tmp_path, kind), drop_path=0.5)
    layers = {name: layer_of(name, DEPTH) for name, _ in model.named_parameters()}
    assert {layers[f"encoder.{n}"] for n in ("cls_token", "patch_embed.proj.weight")} == {0}
    assert [layers[f"encoder.blocks.{n}.norm1.bias"] for n in range(DEPTH)] == [1, 2, 3]
    shared = "encoder.rel_pos_bias.relative_position_bias_table"
    tops = {"encoder.norm.weight", "head.weight", shared} & layers.keys()
    assert {layers[name] for name in tops} == {DEPTH + 1}
    groups = parameter_groups(model, 0.75, 0.05)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    named = dict(model.named_parameters())
    kept = {name for name in named if id(named[name]) not in decayed}
    assert "encoder.cls_token" in kept
    assert {"encoder.pos_embed", shared} & layers.keys() <= kept
    assert all(named[name].ndim == 1 for name in kept if re.search(r"bias$|norm|gamma|head", name))
    assert sum(len(group["params"]) for group in groups) == len(named)
    assert [block.drop_path1.drop_prob for block in model.encoder.blocks] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("kind", ["mae", "data2vec"])
def test_a_released_file_is_fine_tuned_and_stays_as_it_was(kind, shards, tmp_path):
    name = saved(tmp_path, kind)
    before = (tmp_path / f"{kind}.pth").read_bytes()
    choice = config(name, epochs=1, subset="8-per-class", batch_size=16)
    found = finetune(shards, tmp_path / "out", choice, CPU)
    (score,) = found.scores
    assert (score.pooling, score.provenance.arch) == (CLASS_TOKEN, f"{DIM}x{DEPTH}/8")
    assert score.weights_sha256 == load_encoder(name).weights_sha256
    assert (tmp_path / f"{kind}.pth").read_bytes() == before
    assert finetune(shards, tmp_path / "out", choice, CPU).cached


def test_a_published_file_is_fine_tuned_with_the_encoder_that_was_chosen(shards, tmp_path):
    name, scores = f"published:48x3x3@{TINY}", {}
    for which in ("target", "context"):
        choice = config(name, epochs=1, subset="4-per-class", batch_size=16, which=which)
        (scores[which],) = finetune(shards, tmp_path / which, choice, CPU).scores
    assert scores["target"].which == "target"
    assert scores["context"].which == "context"
    assert scores["target"].weights_sha256 != scores["context"].weights_sha256
    assert EncoderSpec.parse(name).trainable().pooling == PATCH_AVERAGE


def test_transformers_ijepa_is_fine_tuned_and_its_other_models_are_not(shards, tmp_path):
    transformers = pytest.importorskip("transformers")  # of extra hf
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 192, "image_size": 32, "patch_size": 8}  # fmt: skip
    model = transformers.IJepaModel(transformers.IJepaConfig(**size, layer_norm_eps=1e-6))
    model.save_pretrained(tmp_path / "ijepa")
    found = EncoderSpec.parse(f"hf:{tmp_path / 'ijepa'}").trainable()
    extracted = load_encoder(f"hf:{tmp_path / 'ijepa'}").features(images(), 1)[:, 0]
    tokens = found.network.eval()(images())
    torch.testing.assert_close(tokens.mean(dim=1), extracted, rtol=1e-4, atol=1e-5)
    assert found.which == "context"
    transformers.ViTModel(transformers.ViTConfig(**size)).save_pretrained(tmp_path / "vit")
    with pytest.raises(IjepaError, match=r"not fine-tuned: fine-tuning takes .* I-JEPA alone"):
        plan_finetune(shards, config(f"hf:{tmp_path / 'vit'}"))


def test_a_network_without_such_blocks_is_refused_in_one_line(shards, tmp_path):
    weights = {"resnet": drawn(resnet_shapes(simclr_names))}
    torch.save(weights, tmp_path / "r.pth")
    with pytest.raises(IjepaError, match="not fine-tuned: fine-tuning takes Vision") as caught:
        plan_finetune(shards, config(f"simclrv2:{tmp_path / 'r.pth'}"))
    assert "\n" not in str(caught.value)
