"""An encoder as an ONNX file gives what the encoder gives, or is not written."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

from ijepa.config import ConvertConfig
from ijepa.convert import convert
from ijepa.encoders import write
from ijepa.encoders.spec import load_encoder
from ijepa.errors import IjepaError
from ijepa_cli.main import app

onnxruntime = pytest.importorskip("onnxruntime")  # of extras onnx and dev
OFFICIAL_TINY = Path(__file__).parent / "parity" / "official-tiny.pth.tar"


def to_onnx(source, out, **how):
    return convert(source, out, ConvertConfig(to="onnx", **how))


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_a_run_as_onnx_gives_its_tokens_and_features_for_any_batch(run, tmp_path):
    made = to_onnx(run, tmp_path / "a.onnx")
    assert made.largest_difference < 1e-5
    assert made.holds == "target encoder"
    session, encoder = session_of(made.out), load_encoder(run)
    assert [one.name for one in session.get_inputs()] == ["images"]
    assert [one.name for one in session.get_outputs()] == ["patch_tokens", "features"]
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 32, 32)
        tokens, features = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(tokens, encoder.patch_tokens(images), atol=1e-4)
        np.testing.assert_allclose(features, encoder(images), atol=1e-4)
        np.testing.assert_allclose(features, tokens.mean(axis=1), atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["image_size"]) == [32, 32]
    assert json.loads(said["mean"]) == list(encoder.data.mean)
    assert json.loads(said["std"]) == list(encoder.data.std)
    assert said["crop"].startswith("center, ")
    assert said["interpolation"].startswith("bilinear")
    assert said["weights_sha256"] == encoder.weights_sha256
    assert (said["source"], said["licence"]) == (run.name, "not stated")
    assert str(run.parent) not in json.dumps(said)
    assert "onnxruntime.InferenceSession" in made.card.read_text()
    assert to_onnx(run, tmp_path / "a.onnx").cached


@pytest.mark.slow
def test_other_encoders_as_onnx_have_their_own_pooling_and_licence(tmp_path):
    transformers = pytest.importorskip("transformers")  # of extra hf
    vit = timm.create_model("test_vit", num_classes=0)
    torch.save(vit.state_dict(), tmp_path / "w.pth")
    published = to_onnx(OFFICIAL_TINY, tmp_path / "p.onnx", which="context", arch="48x3x3")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**size, mlp_ratio=2, image_size=28, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    texts = {"random": "random:32x1x2/8@32", "hf": f"hf:{tmp_path / 'dino'}"}
    texts["timm"] = f"timm:test_vit@{tmp_path / 'w.pth'}"
    said = session_of(published.out).get_modelmeta().custom_metadata_map
    assert said["licence"] == "cc-by-nc-4.0"
    for name, text in texts.items():
        made = to_onnx(text, tmp_path / name)
        assert (made.card, made.out) == (None, tmp_path / name)
        assert made.largest_difference < 1e-4
        assert {path.name for path in made.out.iterdir()} == {"model.onnx", "stage.json"}
        encoder = load_encoder(text)
        said = session_of(made.out / "model.onnx").get_modelmeta().custom_metadata_map
        assert (said["pooling"], said["source"]) == (encoder.pooling, text)


def test_a_file_that_gives_other_features_is_not_published(run, tmp_path, monkeypatch):
    class Program:
        class model:  # noqa: N801  # as torch calls it
            metadata_props = {}  # noqa: RUF012  # likewise

        def save(self, out, external_data):
            out.write_bytes(b"graph")

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, given):
            count = len(given["images"])
            return np.zeros((count, 64, 32), np.float32), np.zeros((count, 32), np.float32)

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program())
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(IjepaError, match=r"gives other features .* is not published"):
        to_onnx(run, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_is_no_encoder(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(IjepaError, match="ONNX is for other programs"):
        load_encoder(str(tmp_path / "x.onnx"))


def test_weights_that_no_onnx_file_holds_need_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "FILE_BYTES", 1000)
    with pytest.raises(IjepaError, match=r"name a folder, such as .*/a, which has them in"):
        to_onnx(run, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_large_weights_lie_beside_the_graph(run, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "FILE_BYTES", 1000)
    made = to_onnx(run, tmp_path / "a")
    names = {path.name for path in made.out.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "README.md", "stage.json"}
    assert made.largest_difference < 1e-5


@pytest.mark.parametrize(
    ("source", "out", "to", "message"),
    [
        ("nowhere", "a.onnx", "onnx", "There is nothing to convert at nowhere"),
        ("timm:nonsense_net", "a.onnx", "onnx", "nonsense_net"),
        ("RUN", "a.pt", "onnx", "--to onnx makes a folder, and .*a.pt is the name of a file"),
        ("RUN", "a.safetensors", "timm", "--to timm makes a folder, .* such as .*/a[.]"),
        ("RUN", "a.pt", "hf", "--to hf makes a folder, and .*a.pt is the name of a file"),
        ("RUN", "a.onnx", "ours", "would be no onnx file"),
        ("RUN", "/", "ours", "/ does not end in a name"),
        ("RUN", "a.pt", "safetensors", "would be a safetensors file; name it a.safetensors"),
    ],
)
def test_what_cannot_be_written_is_one_line(run, tmp_path, source, out, to, message):
    words = ["convert", source.replace("RUN", str(run)), tmp_path / out, "--to", *to.split()]
    with pytest.raises(IjepaError, match=message):
        CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
