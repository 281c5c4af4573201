"""Extraction: the right encoder, each image once, exact after a kill."""

import errno
import json
import os
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ijepa.config import ExtractConfig, Runtime
from ijepa.data.decode import decode_rgb
from ijepa.data.shards import SplitReader, open_shards
from ijepa.encoders.spec import EncoderSpec, load_encoder
from ijepa.errors import IjepaError
from ijepa.extract import extract
from ijepa.features.store import FeatureWriter, open_features
from ijepa.jepa.augment import normalise
from ijepa_cli.main import main

CPU = Runtime(device="cpu", workers=0)


def config(encoder, **options) -> ExtractConfig:
    return ExtractConfig(encoder=str(encoder), split="train", **options)


def fingerprint(choice: ExtractConfig) -> str:
    return EncoderSpec.parse(choice.encoder, which=choice.which).fingerprint()


@pytest.fixture
def images(shards):
    return open_shards(shards).split("train")


def test_each_row_is_the_encoders_view_of_its_image(run, shards, images, tmp_path):
    extract(shards, tmp_path / "f.h5", config(run, dtype="float32", layers=2), CPU)
    store = open_features(tmp_path / "f.h5")
    assert store.shape == (256, 2, 32)
    encoder = load_encoder(str(run))
    for number in (0, 100, 255):
        sample = images.read_sample(number)
        assert store.keys[number] == sample.key
        assert store.labels["class"][number] == sample.labels["class"]
        pixels = torch.from_numpy(decode_rgb(sample.image)).permute(2, 0, 1)[None]
        expected = encoder.features(normalise(pixels, encoder.data.mean, encoder.data.std), 1)[0, 0]
        np.testing.assert_allclose(store.last(1)[number], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_target_context_and_initial_encoders_are_three_different_ones(run, shards, tmp_path):
    names = {
        "target": config(run),
        "context": config(run, which="context"),
        "initial": config(f"random:{run}"),
    }
    features = {}
    for name, choice in names.items():
        extract(shards, tmp_path / f"{name}.h5", choice, CPU)
        features[name] = open_features(tmp_path / f"{name}.h5").last(1)
    assert not np.allclose(features["target"], features["context"], atol=1e-3)
    assert not np.allclose(features["target"], features["initial"], atol=1e-3)
    assert len({fingerprint(choice) for choice in names.values()}) == 3


def test_stopped_with_all_rows_done_it_only_assembles(shards, tmp_path, monkeypatch):
    """64 images, no multiple of the batch: the last, ragged batch must not come twice."""
    choice = ExtractConfig(encoder="pixels", split="val")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "finish", Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            extract(shards, tmp_path / "f.h5", choice, CPU)
    assert extract(shards, tmp_path / "f.h5", choice, CPU).images == 64
    extract(shards, tmp_path / "whole.h5", choice, CPU)
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_run_made_again_is_another_encoder(run, tmp_path):
    """Another device or library gives other weights to an equal plan."""
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert fingerprint(config(again)) == fingerprint(config(run))
    record = json.loads((again / "stage.json").read_text())
    del record["files"]
    (again / "stage.json").write_text(json.dumps(record | {"finished": "later"}))
    assert fingerprint(config(again)) != fingerprint(config(run))


def test_pixels_are_the_image_itself(shards, images, tmp_path):
    extract(shards, tmp_path / "f.h5", config("pixels", image_px=32, dtype="float32"), CPU)
    store = open_features(tmp_path / "f.h5")
    assert store.shape == (256, 1, 3 * 32 * 32)
    encoder = load_encoder("pixels", image_px=32)
    pixels = torch.from_numpy(decode_rgb(images.read_image(7))).permute(2, 0, 1)[None]
    expected = normalise(pixels, encoder.data.mean, encoder.data.std).flatten()
    np.testing.assert_allclose(store.last(1)[7], expected.numpy(), atol=1e-6)


def test_random_encoders_come_by_architecture_and_seed(shards, tmp_path):
    stores = []
    for seed in (0, 0, 1):
        path = tmp_path / f"{len(stores)}.h5"
        extract(shards, path, config("random:32x2x2/8@32", seed=seed), CPU)
        stores.append(open_features(path).last(4))
    assert np.array_equal(stores[0], stores[1])
    assert not np.allclose(stores[0], stores[2])
    provenances = [open_features(tmp_path / f"{n}.h5").header.provenance for n in (0, 2)]
    assert provenances[0].family == provenances[1].family
    assert [one.seed for one in provenances] == [0, 1]


def test_a_store_knows_the_settings_and_the_seed_of_its_encoder(run, shards, tmp_path):
    found = {}
    for name in (str(run), f"random:{run}", "pixels"):
        path = tmp_path / f"{len(found)}.h5"
        extract(shards, path, config(name), CPU)
        found[name] = open_features(path).header.provenance
    trained, initial, pixels = found.values()
    assert (trained.method, trained.arch, trained.seed) == ("I-JEPA", "32x2x2/4", 0)
    assert (initial.method, initial.epochs) == (None, 0)
    assert len({trained.family, initial.family, pixels.family}) == 3


def test_another_image_size_interpolates_positions(run, shards, tmp_path):
    extract(shards, tmp_path / "f.h5", config(run, image_px=64), CPU)
    assert open_features(tmp_path / "f.h5").header.image_px == 64
    with pytest.raises(IjepaError, match="no multiple of the patch"):
        extract(shards, tmp_path / "g.h5", config(run, image_px=63), CPU)


class StopError(Exception):
    """Raised by a progress callback, to stop in the middle."""


def test_an_interrupted_extraction_goes_on_and_ends_the_same(run, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.extract.BATCH_ROWS", 50)
    extract(shards, tmp_path / "whole.h5", config(run), CPU)
    seen = []

    def stop(task, done, *_):
        seen.append(done)
        if len(seen) == 2:
            raise StopError

    with pytest.raises(StopError):
        extract(shards, tmp_path / "cut.h5", config(run), CPU, stop)
    assert not (tmp_path / "cut.h5").exists()
    extract(shards, tmp_path / "cut.h5", config(run), CPU, lambda task, done, *_: seen.append(done))
    assert seen == [50, 100, 150, 200, 250, 256]
    whole, cut = open_features(tmp_path / "whole.h5"), open_features(tmp_path / "cut.h5")
    assert whole.keys == cut.keys
    assert np.array_equal(whole.last(4), cut.last(4))


def test_views_stand_row_by_row_behind_each_evaluation_view(run, shards, tmp_path, monkeypatch):
    extract(shards, tmp_path / "plain.h5", config(run), CPU)
    choice = config(run, views=2, augment="rrc-flip")
    result = extract(shards, tmp_path / "views.h5", choice, CPU)
    assert (result.images, result.views) == (256, 3)
    plain, viewed = (open_features(tmp_path / f"{name}.h5") for name in ("plain", "views"))
    assert (viewed.header.num_views, viewed.header.augment) == (2, "rrc-flip")
    assert viewed.views.tolist() == [0, 1, 2] * 256
    assert viewed.keys[::3] == viewed.keys[2::3] == plain.keys
    np.testing.assert_array_equal(viewed.labels["class"][1::3], plain.labels["class"])
    np.testing.assert_allclose(viewed.last()[::3], plain.last(), atol=2e-3)
    assert not np.allclose(viewed.last()[1::3], viewed.last()[2::3], atol=1e-2)


def test_an_interrupted_extraction_of_views_ends_the_same(run, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.extract.BATCH_ROWS", 100)
    choice = config(run, views=2, augment="flip")
    extract(shards, tmp_path / "whole.h5", choice, CPU)

    def stop(task, done, *_):
        if done > 60:
            raise StopError

    with pytest.raises(StopError):
        extract(shards, tmp_path / "cut.h5", choice, CPU, stop)
    extract(shards, tmp_path / "cut.h5", choice, CPU)
    assert (tmp_path / "cut.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"views": 2}, "views need augment"), ({"augment": "flip"}, "augment flip needs views")],
)
def test_views_and_augmentation_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        config("pixels", **options)


def test_the_same_extraction_is_cached_and_another_encoder_is_not(run, shards, tmp_path):
    out = tmp_path / "f.h5"
    assert not extract(shards, out, config(run), CPU).cached
    assert extract(shards, out, config(run), CPU).cached
    assert not extract(shards, out, config(run, which="context"), CPU).cached


def test_features_in_bf16_are_close_to_those_in_fp32_and_the_file_says_so(run, shards, tmp_path):
    stores = {}
    for precision in ("auto", "fp32", "bf16"):
        path = tmp_path / f"{precision}.h5"
        extract(shards, path, config(run, precision=precision, dtype="float32"), CPU)
        stores[precision] = open_features(path)
    found = {name: store.header.precision for name, store in stores.items()}
    assert found == {"auto": "fp32", "fp32": "fp32", "bf16": "bf16"}
    exact, rounded = (torch.from_numpy(stores[name].last()) for name in ("fp32", "bf16"))
    assert torch.equal(exact, torch.from_numpy(stores["auto"].last()))
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded).min() > 0.999


def test_pixels_are_not_computed_so_they_are_fp32_whatever_is_asked(shards, tmp_path):
    extract(shards, tmp_path / "f.h5", config("pixels", precision="bf16"), CPU)
    assert open_features(tmp_path / "f.h5").header.precision == "fp32"


def test_features_info_shows_the_precision(run, shards, tmp_path, monkeypatch, capsys):
    extract(shards, tmp_path / "f.h5", config(run, precision="bf16"), CPU)
    monkeypatch.setattr(sys, "argv", ["ijepa", "features", "info", str(tmp_path / "f.h5")])
    with pytest.raises(SystemExit):
        main()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "precision" in line]
    assert "bf16" in line


def test_another_precision_is_another_extraction(run, shards, tmp_path):
    out = tmp_path / "f.h5"
    extract(shards, out, config(run), CPU)
    assert not extract(shards, out, config(run, precision="bf16"), CPU).cached
    assert extract(shards, out, config(run, precision="bf16"), CPU).cached


def test_a_file_begun_in_one_precision_and_finished_in_another_is_of_one(
    run, shards, tmp_path, monkeypatch
):
    """A GPU's work goes on on a CPU: `auto` is not the same there."""
    monkeypatch.setattr("ijepa.extract.BATCH_ROWS", 50)
    extract(shards, tmp_path / "whole.h5", config(run), CPU)

    def stop(task, done, *_):
        if done > 60:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("ijepa.encoders.base.uses_bf16", lambda *_: True)
        with pytest.raises(StopError):
            extract(shards, tmp_path / "cut.h5", config(run), CPU, stop)
    extract(shards, tmp_path / "cut.h5", config(run), CPU)
    assert (tmp_path / "cut.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_batch_in_flight_changes_neither_numbers_nor_order(run, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.extract.BATCH_ROWS", 50)
    extract(shards, tmp_path / "at_once.h5", config(run), CPU)
    monkeypatch.setattr("ijepa.extract.IN_FLIGHT", {"cpu": 1})
    extract(shards, tmp_path / "later.h5", config(run), CPU)
    assert (tmp_path / "later.h5").read_bytes() == (tmp_path / "at_once.h5").read_bytes()


def test_the_main_process_reads_no_image(run, shards, tmp_path, monkeypatch):
    extract(shards, tmp_path / "alone.h5", config(run), CPU)
    main_process, read = os.getpid(), SplitReader.read_image

    def read_in_a_worker(*arguments):
        assert os.getpid() != main_process
        return read(*arguments)

    monkeypatch.setattr(SplitReader, "read_image", read_in_a_worker)
    extract(shards, tmp_path / "workers.h5", config(run), Runtime(device="cpu", workers=2))
    assert (tmp_path / "workers.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_extracts_in_bf16_what_a_cpu_extracts_in_fp32(run, shards, tmp_path, monkeypatch):
    monkeypatch.setattr("ijepa.extract.BATCH_ROWS", 50)  # several batches, one in flight
    extract(shards, tmp_path / "cpu.h5", config(run), CPU)
    extract(shards, tmp_path / "gpu.h5", config(run), Runtime(device="cuda"))
    cpu, gpu = (open_features(tmp_path / f"{name}.h5") for name in ("cpu", "gpu"))
    assert (gpu.header.precision, gpu.keys) == ("bf16", cpu.keys)
    assert np.array_equal(gpu.image_ids, cpu.image_ids)
    one, two = (torch.from_numpy(store.last()) for store in (cpu, gpu))
    assert torch.cosine_similarity(one, two).min() > 0.999


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, shards, name):
    (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(IjepaError, match="no finished run"):
        extract(shards, tmp_path / "f.h5", config(tmp_path / "empty"), CPU)


def test_bicubic_views_are_another_extraction_and_the_file_says_so(shards, tmp_path):
    made = {}
    for name in ("bilinear", "bicubic"):
        out = tmp_path / f"{name}.h5"
        small = config("pixels", dtype="float32", interpolation=name, image_px=24)
        extract(shards, out, small, CPU)
        made[name] = open_features(out)
        assert made[name].header.interpolation == name
        assert f"{name} to 24" in made[name].header.transform
    first, second = (store.last(1)[:] for store in made.values())
    assert 0 < np.abs(first - second).max() < np.ptp(first)


def test_the_evaluation_split_is_stored_by_its_own_name(shards, tmp_path):
    out, cpu = tmp_path / "f.h5", Runtime(device="cpu", workers=0)
    extract(shards, out, ExtractConfig(encoder="pixels", split="evaluation"), cpu)
    assert open_features(out).header.split == "val"
    assert extract(shards, out, ExtractConfig(encoder="pixels", split="val"), cpu).cached
