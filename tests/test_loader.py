"""Batches depend on the seed and the step, on nothing else."""

import io
import os
import signal

import numpy as np
import pytest
import torch
from pictures import as_file, pixels
from PIL import Image

from ijepa.config import DataConfig, Runtime
from ijepa.data.decode import decode_rgb
from ijepa.data.loader import (
    CachedCropBatches,
    RandomCropBatches,
    StepPlan,
    ViewBatches,
    ViewPlan,
    batches,
)
from ijepa.data.shards import open_shards
from ijepa.distributed import num_workers
from ijepa.errors import IjepaError

CONFIG = DataConfig(image_px=32, batch_size=32, flip=True)


@pytest.fixture
def images(shards):
    return open_shards(shards).split("train")


def read(images, steps, workers, seed=0):
    return list(
        batches(RandomCropBatches(images, StepPlan(len(images), CONFIG, seed)), steps, workers)
    )


@pytest.mark.parametrize(("first", "workers"), [(0, 2), (7, 0)])
def test_batches_depend_on_their_step_not_on_workers_or_where_a_run_began(images, first, workers):
    whole, others = read(images, range(12), 0)[first:], read(images, range(first, 12), workers)
    for expected, found in zip(whole, others, strict=True):
        assert expected.step == found.step
        assert torch.equal(expected.images, found.images)
        assert torch.equal(expected.numbers, found.numbers)


def test_every_epoch_shows_every_image_once_in_another_order(images):
    epochs = [read(images, range(8 * epoch, 8 * epoch + 8), 0) for epoch in (0, 1)]
    orders = [torch.cat([batch.numbers for batch in epoch]) for epoch in epochs]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(256))
    assert not torch.equal(*orders)


def test_another_seed_gives_other_crops(images):
    one, other = read(images, range(1), 0), read(images, range(1), 0, seed=1)
    assert not torch.equal(one[0].images, other[0].images)


@pytest.mark.parametrize(
    ("device", "asked", "cores", "processes", "expected"),
    [
        ("cpu", None, 16, 1, 2),
        ("cuda:0", None, 16, 1, 14),
        ("cuda:1", None, 64, 8, 6),
        ("cuda:0", None, 2, 1, 2),
        ("cuda:0", 0, 16, 1, 0),
        ("cpu", 5, 2, 1, 5),
    ],
)
def test_a_gpu_gets_all_cores_but_two_unless_a_number_is_asked_for(
    device, asked, cores, processes, expected, monkeypatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    torchrun = {"RANK": 0, "WORLD_SIZE": processes, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": processes}
    for name, value in (torchrun | {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))
    assert num_workers(Runtime(workers=asked), torch.device(device)) == expected


def test_evaluation_views_come_in_order_and_end_with_a_short_batch(images):
    views = ViewBatches(images, ViewPlan(32, 1.0), batch_size=100)
    read = list(batches(views, range(len(views)), workers=0))
    assert torch.equal(torch.cat([batch.numbers for batch in read]), torch.arange(256))
    assert len(read[-1].images) == 56
    first = torch.from_numpy(decode_rgb(images.read_image(0))).permute(2, 0, 1)
    assert torch.equal(read[0].images[0], first)


def test_augmented_views_follow_each_evaluation_view_whatever_the_batches(images):
    plan = ViewPlan(24, 1.0, augmented=3, augment="rrc-flip", seed=5)
    found = []
    for size, workers in ((100, 0), (7, 2)):
        views = ViewBatches(images, plan, batch_size=size)
        read = batches(views, range(len(views)), workers)
        found.append(torch.cat([batch.images for batch in read]).unflatten(0, (256, 4)))
    assert torch.equal(*found)
    plain = ViewBatches(images, ViewPlan(24, 1.0), batch_size=256)[0].images
    assert torch.equal(found[0][:, 0], plain)
    shown = found[0].flatten(2).float()
    assert not any(torch.equal(shown[:, a], shown[:, b]) for a in range(4) for b in range(a))
    other = ViewBatches(images, plan._replace(seed=6), batch_size=256)[0].images
    assert not torch.equal(other.unflatten(0, (256, 4))[:, 1], found[0][:, 1])


def test_flipped_views_are_the_evaluation_view_or_its_mirror_image_about_equally_often(images):
    plan = ViewPlan(32, None, augmented=2, augment="flip")
    views = ViewBatches(images, plan, batch_size=256)[0].images.unflatten(0, (256, 3))
    same = (views[:, 1:] == views[:, :1]).flatten(2).all(2)
    mirrored = (views[:, 1:] == views[:, :1].flip(-1)).flatten(2).all(2)
    assert (same | mirrored).all()
    assert 0.4 < same.float().mean() < 0.6  # of 512: four standard deviations


@pytest.mark.parametrize(
    ("mode", "kind", "sampling"),
    [
        *(("RGB", "JPEG", sampling) for sampling in (0, 1, 2)), ("CMYK", "JPEG", -1),
        ("L", "JPEG", -1), ("L", "PNG", -1), ("RGBA", "PNG", -1), ("P", "PNG", -1),
        ("RGB", "WEBP", -1),
    ],
)  # fmt: skip
def test_images_of_every_kind_decode_to_pillows_pixels(mode, kind, sampling):
    photo = Image.fromarray(pixels(0, 20, 30)).convert(mode)
    content = as_file(photo, kind, quality=90, subsampling=sampling)
    theirs = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    difference = np.abs(decode_rgb(content).astype(int) - theirs)
    assert difference.max() <= (mode == "CMYK")


CPU = torch.device("cpu")


class Pictures(list):
    """Photographs of several shapes, as PNG."""

    def __init__(self):
        for seed, (height, width) in enumerate([(40, 64), (64, 40), (33, 33), (90, 51)]):
            small = Image.fromarray(pixels(seed, height // 4, width // 4))
            self.append(as_file(small.resize((width, height)), "PNG"))

    def read_image(self, number):
        return self[number]


@pytest.mark.parametrize("image_px", [24, (16, 48), 64])
def test_cached_crops_are_the_loaders_crops_within_a_level(image_px):
    pictures = Pictures()
    config = DataConfig(image_px=image_px, batch_size=4, flip=True, crop_scale=(0.2, 1.0))
    plan = StepPlan(len(pictures), config, 0)
    cached = CachedCropBatches(pictures, plan, CPU, 2)
    differences = []
    for step in range(40):
        theirs, ours = RandomCropBatches(pictures, plan)[step], cached[step]
        assert torch.equal(theirs.numbers, ours.numbers)
        assert ours.images.dtype == torch.uint8
        differences.append((theirs.images.int() - ours.images.int()).abs())
    difference = torch.cat(differences)
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.05


class Breaking:
    """Batches that never come."""

    def __init__(self, act):
        self.act = act

    def __getitem__(self, step):
        self.act()


def fail_to_read():
    raise OSError(5, "Input/output error", "/x.tar")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (fail_to_read, r"^\[Errno 5\] Input/output error: '/x\.tar'$"),
        (kill, "was killed, most likely for want of memory.* --workers"),
    ],
)
def test_a_worker_that_cannot_read_or_is_killed_is_one_line(act, message):
    with pytest.raises(IjepaError, match=message):
        list(batches(Breaking(act), range(4), workers=1))


def test_cached_crops_of_a_part_are_the_part(images):
    plans = [StepPlan(len(images), CONFIG, 0, part) for part in (None, slice(8, 16))]
    whole, part = (CachedCropBatches(images, plan, CPU, 1)[3] for plan in plans)
    assert torch.equal(whole.images[8:16], part.images)


@pytest.mark.parametrize(
    ("kind", "name"), [("", "memory.max"), ("memory", "memory.limit_in_bytes")]
)
def test_images_that_do_not_fit_into_the_memory_of_a_job_are_refused(
    monkeypatch, tmp_path, kind, name
):
    own, job = tmp_path / "cgroup", tmp_path / kind / "job"
    own.write_text(f"3:cpuset:/\n0:{kind}:/job/step\n")
    (job / "step").mkdir(parents=True)
    (job / "step" / name).write_text("max\n")
    (job / name).write_text("20000\n")
    monkeypatch.setattr("ijepa.data.loader.OWN_CGROUPS", own)
    monkeypatch.setattr("ijepa.data.loader.CGROUPS", tmp_path)
    with pytest.raises(IjepaError, match=r"need 0\.0 GB; a process has 0\.0 GB"):
        CachedCropBatches(Pictures(), StepPlan(4, CONFIG, 0), CPU, 1)


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr("ijepa.data.loader._memory_bytes", lambda device: {"a process": 10_000})
    with pytest.raises(IjepaError, match=r"canvases of 90x64 pixels need 0\.0 GB.*--resize"):
        CachedCropBatches(Pictures(), StepPlan(4, CONFIG, 0), CPU, 1)
