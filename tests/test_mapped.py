"""A digest of weights in a mapped file leaves them on disk, and what was changed untouched."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ijepa.encoders.frozen import weights_sha256
from ijepa.features import mapped
from ijepa.weights import read_weights

SIDE = 2048  # 16 MB a tensor


def resident_file_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.fixture(params=["torch", "safetensors"])
def weights(request, tmp_path):
    tensors = {f"w{n}": torch.full((SIDE, SIDE), float(n)) for n in range(4)}
    if request.param == "torch":
        torch.save(tensors, tmp_path / "w.pth")
    else:
        save_file(tensors, tmp_path / "w.pth")
    return read_weights(tmp_path / "w.pth")


def test_a_digest_of_mapped_weights_keeps_no_page_of_them(weights):
    size = sum(value.nbytes for value in weights.values())
    before = resident_file_bytes()
    digest = weights_sha256(weights)
    assert resident_file_bytes() - before < size / 2
    assert digest == weights_sha256({name: value.clone() for name, value in weights.items()})
    assert [float(value.mean()) for value in weights.values()] == [0, 1, 2, 3]


def test_what_was_written_into_mapped_weights_outlives_their_digest(weights):
    weights["w3"][0, 0] = 7.0
    digest = weights_sha256(weights)
    assert weights["w3"][0, 0] == 7.0
    assert weights_sha256(weights) == digest


def test_weights_in_memory_outlive_their_digest():
    weights = {"w": torch.full((SIDE, SIDE), 3.0)}
    assert weights_sha256(weights) == weights_sha256(weights)
    assert bool((weights["w"] == 3).all())


def test_where_the_system_does_not_say_nothing_is_given_back(monkeypatch, weights, tmp_path):
    monkeypatch.setattr(mapped, "MAPS", tmp_path / "none")
    assert mapped.unchanged_maps() == ()
    assert weights_sha256(weights)
