"""Rendered scenes: reproducible, in CLEVR's layout, with annotations that are true."""

import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ijepa.data.sources.render import Solid, look_at, render
from ijepa.data.sources.scenes import (
    AIM,
    CAMERA,
    HALF_WIDTH,
    JITTER,
    ScenesSpec,
    _solid,
    draw_scene,
    parse_spec,
    render_scenes,
)
from ijepa.errors import IjepaError

SPEC = ScenesSpec(train=6, val=3, image_px=32)
numbers = st.integers(0, 10**6)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_bytes_do_not_depend_on_workers_and_survive_an_interruption(tmp_path):
    render_scenes(SPEC, tmp_path / "one", workers=0)
    render_scenes(SPEC, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")

    class StopError(Exception):
        pass

    def stop(task, done, *_):
        if done == 4:
            raise StopError

    with pytest.raises(StopError):
        render_scenes(SPEC, tmp_path / "cut", workers=0, progress=stop)
    assert not (tmp_path / "cut" / "scenes" / "CLEVR_train_scenes.json").exists()
    render_scenes(SPEC, tmp_path / "cut", workers=0)
    assert files(tmp_path / "one") == files(tmp_path / "cut")


@given(number=numbers)
@settings(max_examples=10, deadline=None)
def test_a_scene_is_what_its_annotations_say(number):
    spec = ScenesSpec(image_px=32)
    annotations, image = draw_scene(spec, "train", number)
    objects = annotations["objects"]
    assert image.shape == (32, 32, 3)
    assert spec.min_objects <= len(objects) <= spec.max_objects
    places = np.array([thing["3d_coords"] for thing in objects])
    heights = places[:, 2]
    for one in range(len(objects)):
        across, down, depth = objects[one]["pixel_coords"]
        assert 0 < across < 32
        assert 0 < down < 32
        assert 5 < depth < 16
        for other in range(one):
            gap = np.linalg.norm(places[one, :2] - places[other, :2])
            assert gap > heights[one] + heights[other]


def test_every_object_is_seen_and_alone_changes_the_image():
    annotations, _ = draw_scene(SPEC, "train", 0)
    camera = look_at(CAMERA, AIM, HALF_WIDTH)
    solids = [_solid(thing) for thing in annotations["objects"]]
    lamp = np.array([-2.5, -5.0, 8.0])
    empty = render(camera, [], lamp, 32, min_seen=1)
    for solid in solids:
        image = render(camera, [solid], lamp, 32, min_seen=1)
        assert (image != empty).any()


def test_a_scene_that_hides_an_object_is_not_drawn():
    camera = look_at(CAMERA, AIM, HALF_WIDTH)
    lamp, red = np.array([-2.5, -5.0, 8.0]), np.array([1.0, 0.0, 0.0])
    small = Solid("sphere", np.array([0.0, 0.0, 0.35]), 0.35, 0.0, red, is_metal=False)
    away = camera.position - small.centre
    before = small.centre + 2.5 * away / np.linalg.norm(away)
    large = Solid("sphere", before, 1.2, 0.0, red, is_metal=False)
    assert render(camera, [small], lamp, 32, min_seen=5) is not None
    assert render(camera, [small, large], lamp, 32, min_seen=5) is None


def test_depth_is_the_distance_along_the_optical_axis():
    camera = look_at(CAMERA, AIM, HALF_WIDTH)
    across, down, depth = camera.project(AIM, 64)
    assert (across, down) == pytest.approx((32, 32))
    assert depth == pytest.approx(np.linalg.norm(CAMERA - AIM))
    nearer = AIM + 0.5 * camera.forward
    assert camera.project(nearer, 64)[2] == pytest.approx(depth + 0.5)
    assert camera.project(AIM + 0.5 * camera.right, 64)[0] > 32
    assert camera.project(AIM + 0.5 * camera.up, 64)[1] < 32


def test_annotated_pixels_show_the_objects_colour():
    """Where a lone red ball is annotated, the image is redder than anywhere on the floor."""
    camera = look_at(CAMERA, AIM, HALF_WIDTH)
    thing = {
        "shape": "sphere",
        "3d_coords": [0.5, -0.7, 0.7],
        "rotation": 0.0,
        "color": "red",
        "material": "rubber",
    }
    lamp = np.array([-2.5, -5.0, 8.0])
    image = render(camera, [_solid(thing)], lamp, 64, min_seen=1)
    across, down, _ = camera.project(np.array(thing["3d_coords"]), 64)
    redness = image[..., 0].astype(int) - image[..., 2]
    assert redness[round(down), round(across)] > 50
    assert np.median(redness) < 5


def test_all_counts_distances_and_classes_occur():
    scenes = [draw_scene(ScenesSpec(image_px=16), "train", n).annotations for n in range(150)]
    assert {len(scene["objects"]) for scene in scenes} == {3, 4, 5}
    depths = [min(o["pixel_coords"][2] for o in scene["objects"]) for scene in scenes]
    shares = np.histogram(depths, [0, 8, 8.5, 9, 9.5, 10, 100])[0] / len(depths)
    assert (shares > 0.01).all()


def test_the_layout_is_clevrs_own(tmp_path, test_data):
    with tarfile.open(test_data / "clevr-mini.tar") as real:
        theirs = json.load(real.extractfile("scenes/CLEVR_val_scenes.json"))
    render_scenes(SPEC, tmp_path, workers=0)
    ours = json.loads((tmp_path / "scenes" / "CLEVR_val_scenes.json").read_text())
    assert ours.keys() == theirs.keys()
    assert ours["scenes"][0].keys() == theirs["scenes"][0].keys()
    assert ours["scenes"][0]["objects"][0].keys() == theirs["scenes"][0]["objects"][0].keys()
    assert ours["scenes"][0]["relationships"].keys() == theirs["scenes"][0]["relationships"].keys()
    names = sorted(path.name for path in (tmp_path / "images" / "val").iterdir())
    assert names == [f"CLEVR_val_{number:06d}.png" for number in range(3)]
    content = (tmp_path / "images" / "val" / names[0]).read_bytes()
    assert np.array_equal(np.array(Image.open(io.BytesIO(content))), draw_scene(SPEC, "val", 0)[1])


def test_a_specification_is_read_and_a_wrong_one_named():
    assert parse_spec("") == ScenesSpec()
    spec = parse_spec("train=10,px=32,objects=3-4,scale=1,area=3,seed=5")
    assert (spec.train, spec.image_px, spec.max_objects, spec.seed) == (10, 32, 4, 5)
    for text in ("trains=1", "train", "objects=9-3", "px=0", "objects=10,scale=2,area=1"):
        with pytest.raises(IjepaError, match="scenes:"):
            parse_spec(text)


def test_the_camera_moves_from_scene_to_scene():
    behind = [
        draw_scene(SPEC, "train", number).annotations["directions"]["behind"] for number in (0, 1)
    ]
    assert behind[0] != behind[1]
    assert JITTER > 0
