"""Extraction: the right encoder, each image once, exact after a kill."""

import errno
import json
import os
import shutil
import sys
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch
from runs import CPU, StopError, stop_at

from ijepa.config import ExtractConfig, Runtime
from ijepa.data.decode import decode_rgb
from ijepa.data.shards import SplitReader, open_shards
from ijepa.encoders.base import Encoder
from ijepa.encoders.spec import EncoderSpec, load_encoder
from ijepa.errors import IjepaError
from ijepa.extract import describe, extract
from ijepa.features.store import open_features
from ijepa.features.write import FeatureWriter
from ijepa.jepa.augment import normalise
from ijepa_cli.main import main


def config(encoder, **options) -> ExtractConfig:
    return ExtractConfig(encoder=str(encoder), **{"split": "train"} | options)


def fingerprint(choice: ExtractConfig) -> str:
    return EncoderSpec.parse(choice.encoder, which=choice.which).fingerprint()


@pytest.fixture
def images(shards):
    return open_shards(shards).split("train")


@pytest.fixture
def made(shards, tmp_path):
    """A function: the store of an extraction, in a file of its own name."""

    def store(name, choice, runtime=CPU, progress=lambda *_: None):
        return open_features(extract(shards, tmp_path / name, choice, runtime, progress).out)

    return store


def stop_after(images):
    return stop_at(images, "extract images")


def pixels_of(encoder, image):
    pixels = torch.from_numpy(decode_rgb(image)).permute(2, 0, 1)[None]
    return normalise(pixels, encoder.data.mean, encoder.data.std)


def test_each_row_is_the_encoders_view_of_its_image(run, images, made):
    store, encoder = made("f.h5", config(run, dtype="float32", layers=2)), load_encoder(str(run))
    assert store.shape == (256, 2, 32)
    for number in (0, 100, 255):
        sample = images.read_sample(number)
        assert store.keys[number] == sample.key
        assert store.labels["class"][number] == sample.labels["class"]
        expected = encoder.features(pixels_of(encoder, sample.image), 1)[0, 0]
        np.testing.assert_allclose(store.numpy()[number], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_target_context_and_initial_encoders_are_three_different_ones(run, made):
    choices = config(run), config(run, which="context"), config(f"random:{run}")
    stores = [made(f"{n}.h5", choice) for n, choice in enumerate(choices)]
    target, context, initial = (store.numpy() for store in stores)
    assert not np.allclose(target, context, atol=1e-3)
    assert not np.allclose(target, initial, atol=1e-3)
    assert len({fingerprint(choice) for choice in choices}) == 3
    stores.append(made("pixels.h5", config("pixels")))
    trained, _, initial, pixels = (store.header.provenance for store in stores)
    assert (trained.method, trained.arch, trained.seed) == ("I-JEPA", "32x2x2/4", 0)
    assert (initial.method, initial.epochs) == (None, 0)
    assert len({trained.family, initial.family, pixels.family}) == 3


def test_stopped_with_all_rows_done_it_only_assembles(made, tmp_path, monkeypatch):
    """64 images, no multiple of the batch: the last, ragged batch must not come twice."""
    choice = config("pixels", split="val")
    with monkeypatch.context() as patch:
        patch.setattr(FeatureWriter, "finish", Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            made("f.h5", choice)
    assert made("f.h5", choice).shape[0] == 64
    made("whole.h5", choice)
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


def test_pixels_are_the_image_itself_in_fp32_whatever_is_asked(images, made):
    store = made("f.h5", config("pixels", image_px=32, dtype="float32", precision="bf16"))
    assert store.shape == (256, 1, 3 * 32 * 32)
    assert store.header.precision == "fp32"
    expected = pixels_of(load_encoder("pixels", image_px=32), images.read_image(7)).flatten()
    np.testing.assert_allclose(store.numpy()[7], expected.numpy(), atol=1e-6)


def test_random_encoders_come_by_architecture_and_seed(made):
    choices = [config("random:32x2x2/8@32", seed=seed) for seed in (0, 0, 1)]
    stores = [made(f"{n}.h5", choice) for n, choice in enumerate(choices)]
    assert np.array_equal(stores[0].values, stores[1].values)
    assert not np.allclose(stores[0].values, stores[2].values)
    first, _, last = (store.header.provenance for store in stores)
    assert first.family == last.family
    assert (first.seed, last.seed) == (0, 1)


@pytest.mark.parametrize(
    ("options", "batch_rows", "bf16_at_first", "steps"),
    [
        ({}, 50, False, [100, 150, 200, 250, 256]),
        ({"views": 2, "augment": "flip"}, 100, False, [66, 99, 132, 165, 198, 231, 256]),
        ({}, 50, True, [0, 50, 100, 150, 200, 250, 256]),
    ],
    ids=["plain", "views", "begun on a GPU"],  # where `auto` is another precision
)
def test_an_interrupted_extraction_goes_on_after_the_last_batch_and_ends_the_same(
    run, made, tmp_path, monkeypatch, options, batch_rows, bf16_at_first, steps
):
    monkeypatch.setattr("ijepa.extract.encode.BATCH_ROWS", batch_rows)
    made("whole.h5", config(run, **options))
    with monkeypatch.context() as patch:
        if bf16_at_first:
            patch.setattr("ijepa.extract.encode.uses_bf16", lambda *_: True)
        with pytest.raises(StopError):
            made("cut.h5", config(run, **options), progress=stop_after(60))
    assert not (tmp_path / "cut.h5").exists()
    seen = []
    made("cut.h5", config(run, **options), progress=lambda _, done, *__: seen.append(done))
    assert seen == steps
    assert (tmp_path / "cut.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_views_stand_row_by_row_behind_each_evaluation_view(run, made):
    plain = made("plain.h5", config(run))
    viewed = made("views.h5", config(run, views=2, augment="rrc-flip"))
    assert (viewed.header.num_views, viewed.header.augment) == (2, "rrc-flip")
    assert viewed.views.tolist() == [0, 1, 2] * 256
    assert viewed.keys[::3] == viewed.keys[2::3] == plain.keys
    np.testing.assert_array_equal(viewed.labels["class"][1::3], plain.labels["class"])
    np.testing.assert_allclose(viewed.numpy()[::3], plain.numpy(), atol=2e-3)
    assert not np.allclose(viewed.numpy()[1::3], viewed.numpy()[2::3], atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"views": 2}, "views need augment"), ({"augment": "flip"}, "augment flip needs views")],
)
def test_views_and_augmentation_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        config("pixels", **options)


@pytest.mark.parametrize("other", [{"which": "context"}, {"precision": "bf16"}])
def test_the_same_extraction_is_cached_and_another_is_not(run, shards, tmp_path, other):
    choices = config(run), config(run), config(run, **other), config(run, **other)
    cached = [extract(shards, tmp_path / "f.h5", choice, CPU).cached for choice in choices]
    assert cached == [False, True, False, True]


def test_features_in_bf16_are_close_to_those_in_fp32_and_the_file_says_so(
    run, made, tmp_path, monkeypatch, capsys
):
    stores = {
        name: made(f"{name}.h5", config(run, precision=name, dtype="float32"))
        for name in ("auto", "fp32", "bf16")
    }
    found = {name: store.header.precision for name, store in stores.items()}
    assert found == {"auto": "fp32", "fp32": "fp32", "bf16": "bf16"}
    exact, rounded = (torch.from_numpy(stores[name].numpy()) for name in ("fp32", "bf16"))
    assert torch.equal(exact, torch.from_numpy(stores["auto"].numpy()))
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded).min() > 0.999
    monkeypatch.setattr(sys, "argv", ["ijepa", "features", "info", str(tmp_path / "bf16.h5")])
    with pytest.raises(SystemExit):
        main()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "precision" in line]
    assert "bf16" in line


def test_neither_a_batch_in_flight_nor_workers_change_numbers_or_order(
    run, made, tmp_path, monkeypatch
):
    monkeypatch.setattr("ijepa.extract.encode.BATCH_ROWS", 50)
    made("at_once.h5", config(run))
    monkeypatch.setattr("ijepa.extract.encode.IN_FLIGHT", {"cpu": 1})
    main_process, read = os.getpid(), SplitReader.read_image

    def read_in_a_worker(*arguments):
        assert os.getpid() != main_process
        return read(*arguments)

    monkeypatch.setattr(SplitReader, "read_image", read_in_a_worker)
    made("later.h5", config(run), Runtime(device="cpu", workers=2))
    assert (tmp_path / "later.h5").read_bytes() == (tmp_path / "at_once.h5").read_bytes()


class Elsewhere(torch.Tensor):
    """Lies on a device that is neither a CPU nor CUDA's, such as mps."""

    def numpy(self, **_):
        raise TypeError("can't convert mps:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_features_come_to_the_host_from_any_device(made, monkeypatch):
    plain = made("plain.h5", config("pixels"))
    compute = Encoder.features
    monkeypatch.setattr(
        Encoder, "features", lambda *a, **k: compute(*a, **k).as_subclass(Elsewhere)
    )
    assert np.array_equal(made("elsewhere.h5", config("pixels")).numpy(), plain.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_extracts_in_bf16_what_a_cpu_extracts_in_fp32(run, made, monkeypatch):
    monkeypatch.setattr("ijepa.extract.encode.BATCH_ROWS", 50)  # several batches, one in flight
    cpu, gpu = made("cpu.h5", config(run)), made("gpu.h5", config(run), Runtime(device="cuda"))
    assert (gpu.header.precision, gpu.keys) == ("bf16", cpu.keys)
    assert np.array_equal(gpu.image_ids, cpu.image_ids)
    one, two = (torch.from_numpy(store.numpy()) for store in (cpu, gpu))
    assert torch.cosine_similarity(one, two).min() > 0.999


def test_bicubic_views_are_another_extraction_and_the_file_says_so(made):
    first, second = (
        made(f"{name}.h5", config("pixels", dtype="float32", interpolation=name, image_px=24))
        for name in ("bilinear", "bicubic")
    )
    assert (first.header.interpolation, second.header.interpolation) == ("bilinear", "bicubic")
    assert "bicubic to 24" in second.header.transform
    assert 0 < np.abs(first.numpy() - second.numpy()).max() < np.ptp(first.numpy())


def test_the_evaluation_split_is_stored_by_its_own_name(shards, tmp_path, made):
    assert made("f.h5", config("pixels", split="evaluation")).header.split == "val"
    assert extract(shards, tmp_path / "f.h5", config("pixels", split="val"), CPU).cached


@pytest.mark.parametrize("views", [{}, {"views": 1, "augment": "flip"}])
def test_patch_tokens_stand_beside_the_features_that_are_their_mean(run, images, made, views):
    store, encoder = made("t.h5", config(run, layers=2, tokens=True, **views)), load_encoder(run)
    assert store.header.tokens == (8, 8, 32)
    assert store.tokens.shape == (store.shape[0], 64, 32)
    assert store.tokens.dtype == np.float16
    np.testing.assert_allclose(
        store.tokens.mean(1, np.float32), store.numpy(), atol=2e-3, rtol=1e-3
    )
    rows, each = [200, 3, 200], 1 + len(views) // 2
    for row, found in zip(rows, store.tokens[rows], strict=True):
        if row % each == 0:
            expected = encoder.encode_patches(decode_rgb(images.read_image(row // each)))[0]
            np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)
    plain = made("plain.h5", config(run, layers=2, **views))
    assert np.array_equal(plain.values[:, -2:], store.values[:, -2:])
    with pytest.raises(IjepaError, match=r"plain.h5 has no patch tokens; .* --tokens"):
        _ = plain.tokens
    with pytest.raises(IjepaError, match="has no patch tokens"):
        open_features(plain.path, check_tokens=True)


def test_patches_of_pixels_are_the_images_own(images, made):
    choice = config("pixels/8", image_px=32, dtype="float32", tokens=True)
    store = made("p.h5", choice)
    assert (store.header.encoder, store.header.tokens) == ("pixels/8@32", (4, 4, 192))
    image = pixels_of(load_encoder("pixels", image_px=32), images.read_image(5))[0]
    patch = image[:, 8:16, 16:24].flatten()  # row 1, column 2
    np.testing.assert_allclose(store.tokens[5, 1 * 4 + 2], patch.numpy(), atol=1e-6)
    assert np.array_equal(store.numpy(), made("q.h5", choice.model_copy(
        update={"encoder": "pixels", "tokens": False})).numpy())  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "image_px"), [("pixels", 18), ("pixels/8", 20), ("pixels/16", 16)]
)
def test_what_has_no_patch_tokens_is_refused_in_one_line(encoder, image_px, made, tmp_path, shards):
    with pytest.raises(IjepaError, match=r"has no patch tokens; .*pixels/8 with --image") as error:
        made("f.h5", config(encoder, image_px=image_px, tokens=True))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_extraction_of_tokens_ends_the_same_and_damage_is_found(
    run, made, tmp_path, monkeypatch
):
    monkeypatch.setattr("ijepa.extract.encode.BATCH_ROWS", 50)
    choice, path = config(run, tokens=True), tmp_path / "cut.h5"
    made("whole.h5", choice)
    with pytest.raises(StopError):
        made("cut.h5", choice, progress=stop_after(100))
    with h5py.File(tmp_path / "cut.h5.partial" / "cut.h5", "r+") as store:  # by a power failure
        store["tokens"][60, 3, 2] += 1
    seen = []
    made("cut.h5", choice, progress=lambda task, done, *_: seen.append(done))
    assert seen == [50, 100, 150, 200, 250, 256]
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    describe(path, check=True)
    with h5py.File(path, "r+") as store:
        store["tokens"][60, 3, 2] += 1
    open_features(path)  # pooled features are whole
    with pytest.raises(IjepaError, match="rows from 50 on are damaged"):
        describe(path, check=True)


def test_the_start_says_how_much_of_the_disk_tokens_take(run, shards, tmp_path, caplog):
    caplog.set_level("INFO")
    choice = config(run, tokens=True, layers=2)
    out = extract(shards, tmp_path / "f.h5", choice, CPU).out
    [line] = [one.getMessage() for one in caplog.records if "on disk" in one.getMessage()]
    assert abs(float(line.split()[1]) - out.stat().st_size / 1e6) < 0.1
