"""`ijepa convert --push` uploads what timm and transformers load, with a card for the hub."""

import json
import sys

import huggingface_hub
import pytest
import timm
from huggingface_hub import ModelCard

import ijepa
from ijepa_cli.main import main

hub = pytest.importorskip("hub")  # flask is of extra dev


@pytest.fixture
def fake(monkeypatch):
    """The fake hub, with a token for it and no other."""
    server = hub.Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    yield server
    server.close()


@pytest.fixture
def convert(monkeypatch, capsys, run, tmp_path):
    """Convert the run as a user does: the exit code, and what is said on stdout or stderr."""

    def convert(*words):
        command = ["ijepa", "convert", str(run), str(tmp_path / "out"), *map(str, words)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, " ".join((said.err if ended.value.code else said.out).split())

    return convert


def test_a_pushed_folder_is_what_was_converted_with_a_card_that_names_the_hub(
    fake, convert, tmp_path
):
    code, said = convert("--to", "timm", "--license", "mit", "--push", "me/stripes")
    assert code == 0
    assert f"Uploaded to {fake.url}/me/stripes" in said
    files = fake.models["me/stripes"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert all((tmp_path / "out" / name).read_bytes() == files[name] for name in files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict() == {
        "library_name": "timm",
        "license": "mit",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["i-jepa", "self-supervised-learning", "vision-transformer"],
    }
    assert "timm.create_model('hf-hub:me/stripes', pretrained=True)" in card.text
    assert fake.private == set()
    assert convert("--to", "timm", "--license", "mit", "--push", "me/stripes")[0] == 0  # again


def test_a_model_is_private_if_that_is_wished(fake, convert):
    code, said = convert("--to", "hf", "--push", "me/secret", "--private", "--json")
    assert (code, json.loads(said)["url"]) == (0, f"{fake.url}/me/secret")
    assert fake.private == {"me/secret"}
    assert "preprocessor_config.json" in fake.models["me/secret"]
    assert b"AutoModel.from_pretrained('me/secret')" in fake.models["me/secret"]["README.md"]


@pytest.mark.parametrize(
    ("name", "to", "words"),
    [
        ("me/a b", "timm", "--push me/a b is not a name on the hub"),
        ("stripes", "timm", "write it as USER/stripes"),
        ("me/stripes", "published", "--push takes the hub's formats, --to timm or hf"),
    ],
)
def test_a_push_that_cannot_succeed_is_refused_before_anything_is_written(
    fake, convert, tmp_path, name, to, words
):
    code, said = convert("--to", to, "--push", name)
    assert code == 1
    assert words in said
    assert not (tmp_path / "out").exists()
    assert fake.models == {}


def test_without_a_token_the_error_says_how_to_get_one(fake, convert, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, said = convert("--to", "timm", "--push", "me/stripes")
    assert code == 1
    assert "needs a token of the Hugging Face Hub" in said
    assert "`hf auth login` or set HF_TOKEN" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("status", "words"), [(401, "not valid"), (403, "may not write there")])
def test_a_refusal_of_the_hub_is_one_line_and_leaves_the_converted_weights(
    fake, convert, tmp_path, status, words
):
    fake.refuses = status
    code, said = convert("--to", "timm", "--push", "me/stripes")
    assert code == 1
    assert words in said
    assert "https://huggingface.co/settings/tokens" in said
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_a_network_the_same_command_uploads_later(fake, convert, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, said = convert("--to", "timm", "--push", "me/stripes")
    assert code == 1
    assert "--push me/stripes did not reach http://127.0.0.1:9" in said
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake.url)
    code, said = convert("--to", "timm", "--push", "me/stripes")
    assert (code, "cached" in said) == (0, True)
    assert "me/stripes" in fake.models


def test_timm_loads_what_was_pushed_as_it_is(fake, convert, tmp_path, run):
    convert("--to", "timm", "--push", "me/stripes")
    for name, content in fake.models["me/stripes"].items():
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    model = timm.create_model(f"local-dir:{tmp_path / 'fetched'}", pretrained=True)
    assert model.embed_dim == ijepa.load_encoder(run).dim
