"""Crops are torchvision's and Pillow's; normalisation is what the mean and std say."""

import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ijepa.config import DataConfig
from ijepa.data.decode import decode_rgb
from ijepa.jepa.augment import draw_crops, evaluation_crop, fit_box, normalise, resize_box

side = st.integers(1, 300)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@given(height=side, width=side, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_every_crop_lies_inside_its_image(height, width, seed):
    draws = draw_crops(4, DataConfig(), np.random.default_rng(seed))
    for number in range(4):
        top, left, crop_height, crop_width = fit_box(draws, number, height, width)
        assert 0 <= top <= top + crop_height <= height
        assert 0 <= left <= left + crop_width <= width
        assert crop_height > 0
        assert crop_width > 0


def test_crops_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    config = DataConfig(crop_scale=(0.3, 1.0))
    draws = draw_crops(4000, config, np.random.default_rng(0))
    ours = np.array([fit_box(draws, number, 90, 120) for number in range(4000)])
    image = torch.empty(3, 90, 120)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    )
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=1.0)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.8)


def test_a_crop_that_never_fits_has_an_aspect_that_was_asked_for():
    config = DataConfig(crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    draws = draw_crops(1, config, np.random.default_rng(0))
    assert fit_box(draws, 0, 300, 400) == (0, 50, 300, 300)


@given(seed=st.integers(0, 2**32 - 1), px=st.integers(8, 160))
@settings(max_examples=40)
def test_resizing_gives_pillows_pixels(seed, px):
    image = picture(97, 131, seed)
    draws = draw_crops(1, DataConfig(), np.random.default_rng(seed))
    top, left, height, width = box = fit_box(draws, 0, 97, 131)
    cut = Image.fromarray(image).crop((left, top, left + width, top + height))
    theirs = np.asarray(cut.resize((px, px), Image.Resampling.BILINEAR)).astype(int)
    ours = resize_box(image, box, px)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - theirs).max() <= 2
    assert np.mean((ours - theirs) ** 2) < 255**2 / 10**4.5  # 45 dB


def test_the_evaluation_crop_is_the_centre_and_squash_is_everything():
    image = picture(32, 32)
    assert (evaluation_crop(image, 32, 1.0)[0].permute(1, 2, 0).numpy() == image).all()
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[:, :14] = image[:, -14:] = 255  # the filter reaches 2 pixels over the edge
    assert evaluation_crop(image, 32, 1.0).max() == 0
    assert evaluation_crop(image, 32, None).max() == 255
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:6] = 255
    assert evaluation_crop(image, 32, 0.75).max() == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (3, 2)])
def test_tiny_and_thin_images_are_cropped_too(size):
    image = picture(*size)
    assert evaluation_crop(image, 16, 0.875).shape == (1, 3, 16, 16)
    assert evaluation_crop(image, 16, None).shape == (1, 3, 16, 16)


def test_normalising_is_torchvisions_to_tensor_and_normalize():
    from torchvision.transforms.functional import normalize, to_tensor

    config, image = DataConfig(), picture(32, 32)
    ours = normalise(resize_box(image, (0, 0, 32, 32), 32), config.mean, config.std)[0]
    theirs = normalize(to_tensor(image), list(config.mean), list(config.std))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_evaluation_crop_of_another_shape_is_the_largest_centred_box_of_that_shape():
    image = np.zeros((40, 100, 3), dtype=np.uint8)
    image[:, 7:93] = 255  # 40 x 80 is what 1:2 takes, and the filter reaches 2.5 pixels further
    assert evaluation_crop(image, (16, 32), 1.0).min() == 255
    assert evaluation_crop(image, (16, 32), 1.0).shape == (1, 3, 16, 32)
    assert evaluation_crop(image, (16, 40), 1.0).min() == 0


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(60, 500), width=st.integers(60, 500))
@settings(max_examples=25, derandomize=True)
def test_the_evaluation_view_is_torchvisions_resize_and_centre_crop(name, seed, height, width):
    soft = Image.fromarray(picture(height // 8, width // 8, seed))
    image = np.array(soft.resize((width, height), Image.Resampling.BICUBIC))
    off = _levels_off(image, 56, 64, name)
    assert off.max() <= (1 if name == "bilinear" else 4)
    assert np.mean(off > 1) < 1e-3  # torchvision rounds twice, and bicubic overshoots
    squashed = Image.fromarray(image).resize((56, 48), Image.Resampling[name.upper()])
    assert (
        evaluation_crop(image, (48, 56), None, name)[0].permute(1, 2, 0).numpy() == squashed
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_the_evaluation_view_of_photographs_is_torchvisions(name, test_data):
    off = []
    with tarfile.open(test_data / "imagenet-fullsize-200.tar") as tar:
        photographs = [member for member in tar if member.name.lower().endswith(("jpeg", "jpg"))]
        for member in photographs[:50]:
            image = decode_rgb(tar.extractfile(member).read())
            off.append(_levels_off(image, 224, 256, name))
    assert np.mean(np.square(off)) < 255**2 / 10**6.5  # 65 dB
    assert np.mean(np.array(off) > 1) < 1e-4
    assert name == "bicubic" or np.max(off) <= 1


def _levels_off(image, px, whole_px, name):
    """By how much our evaluation view is off that of torchvision's transforms of a PIL image."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    theirs = Compose([Resize(whole_px, interpolation=InterpolationMode(name)), CenterCrop(px)])
    ours = evaluation_crop(image, px, px / whole_px, name)[0].permute(1, 2, 0).numpy().astype(int)
    return np.abs(ours - np.asarray(theirs(Image.fromarray(image))).astype(int))
