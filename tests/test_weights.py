"""Files of weights are read as tensors only, whatever stands in them."""

import argparse
import json
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ijepa.errors import IjepaError
from ijepa.probe.fitting import KeptStates
from ijepa.weights import load_state, read_weights, save_state

TREE = {
    "encoder": {"w": torch.arange(12.0).reshape(3, 4)},
    "epoch": 3,
    "args": argparse.Namespace(a=1),
}


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tree_of_tensors_is_read_from_new_and_old_files_of_pytorch(tmp_path, zipped):
    torch.save(TREE, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    read = read_weights(tmp_path / "w")
    assert torch.equal(read["encoder"]["w"], TREE["encoder"]["w"])
    assert read["epoch"] == 3


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "named.pth")
    assert torch.equal(read_weights(tmp_path / "named.pth")["w"], torch.ones(3))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tmp_path, zipped):
    harm = {"w": torch.ones(3), "x": Harm(tmp_path / "done")}
    torch.save(harm, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    with pytest.raises(IjepaError, match=r"mkdir.* Ask for a file of tensors alone"):
        read_weights(tmp_path / "w")
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_needs_more_than_tensors_is_named(tmp_path, zipped):
    torch.save({"w": np.ones(3)}, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    with pytest.raises(IjepaError, match=r"numpy\..*_reconstruct would have to be run"):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_settings_of_numpy_and_pathlib_are_read(tmp_path, zipped):
    settings = argparse.Namespace(
        lr=np.float64(1.5), steps=[np.int64(3), np.int64(-3)], on=np.bool_(True),
        folder=Path("/data/set"), name=b"\xff",
    )  # fmt: skip
    body = {"w": torch.arange(3), "args": settings, "best": np.float32(2.5), "437": "utf-8"}
    torch.save(body, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_weights(tmp_path / "w")["w"], torch.arange(3))


@pytest.mark.parametrize("kept", [0, 2, 20, 0.3, 0.8, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_is_refused(tmp_path, kind, kept):
    path, weights = tmp_path / "w", {"w": torch.arange(5000.0)}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(IjepaError, match="readable"):
        read_weights(path)


def test_a_checkpoint_that_was_compressed_is_refused(tmp_path):
    weights = {"w": torch.arange(5000.0), "more": torch.randint(256, (60_000,), dtype=torch.uint8)}
    torch.save(weights, tmp_path / "stored")
    with (
        zipfile.ZipFile(tmp_path / "stored") as stored,
        zipfile.ZipFile(tmp_path / "w", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for member in stored.infolist():
            compressed.writestr(member.filename, stored.read(member))
    with pytest.raises(IjepaError, match=r"its member \S+ is compressed"):
        read_weights(tmp_path / "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_that_claims_more_than_the_file_is_refused(tmp_path, zipped):
    path = tmp_path / "w"
    torch.save({"w": torch.ones(7777)}, path, _use_new_zipfile_serialization=zipped)
    content, size = path.read_bytes(), b"M" + struct.pack("<H", 7777)
    assert content.count(size) == 2  # of the storage, and of the tensor
    path.write_bytes(content.replace(size, b"M" + struct.pack("<H", 60000)))
    with pytest.raises(IjepaError, match="readable"):
        read_weights(path)


@pytest.mark.parametrize("length", [None, 2**62])
@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 12]}},
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4 * 10**12]}},
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}},
        {"w": {"dtype": "EVIL", "shape": [3], "data_offsets": [0, 12]}},
        {"w": 3},
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, length):
    text = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(12))
    with pytest.raises(IjepaError, match="readable"):
        read_weights(tmp_path / "w")


def test_what_is_no_mapping_is_refused(tmp_path):
    torch.save([torch.ones(3)], tmp_path / "w")
    with pytest.raises(IjepaError, match="list"):
        read_weights(tmp_path / "w")
    (tmp_path / "w").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(IjepaError, match=r"damaged, or torch\.save did"):
        read_weights(tmp_path / "w")
    with zipfile.ZipFile(tmp_path / "w", "w") as archive:
        archive.writestr("photographs/a.txt", "no weights")
    with pytest.raises(IjepaError, match="readable"):
        read_weights(tmp_path / "w")
    with pytest.raises(IjepaError, match="no file"):
        read_weights(tmp_path / "none")


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 kB: writing more fails halfway, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


SMALL, LARGE = {"x": torch.arange(3)}, {"x": torch.zeros(100_000)}


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_told_with_the_files_name_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, SMALL)
    with pytest.raises(OSError, match=r"File too large: '.*/state\.pt'"):
        save_state(path, LARGE)
    assert torch.equal(load_state(path)["x"], SMALL["x"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("full_disk")
def test_state_that_cannot_be_kept_is_told_and_the_one_before_stays(tmp_path, caplog):
    kept = KeptStates(tmp_path / "encoder-0.pt")
    kept["heads"] = SMALL
    kept["heads"] = LARGE
    assert "encoder-0.pt cannot be saved (File too large)" in caplog.text
    assert torch.equal(KeptStates(tmp_path / "encoder-0.pt")["heads"]["x"], SMALL["x"])
