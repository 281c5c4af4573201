"""Rendered scenes: reproducible, with CLEVR's labels, which are true."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import StopError

from ijepa.data.sources.items import Request
from ijepa.data.sources.kinds import open_source
from ijepa.data.sources.layouts import LABELS
from ijepa.data.sources.scenes import (
    AIM,
    CAMERA,
    LAMP,
    ScenesSpec,
    draw_scene,
    look_at,
    parse_spec,
    render,
)  # fmt: skip
from ijepa.errors import IjepaError
from ijepa.progress import silent

VIEW = look_at(CAMERA, AIM)


def read(work, workers=0, progress=silent):
    """Items, and the bytes of their images."""
    work.mkdir(exist_ok=True)
    source = open_source("scenes:train=24,val=12,px=32")
    items = list(source.read(Request(work, (), workers, progress)).items)
    pack = (work / "packed.images").read_bytes()
    images = [pack[item.offset : item.offset + item.size_bytes] for item in items]
    return [item[:3] + item[4:] for item in items], images


def test_the_bytes_do_not_depend_on_workers_and_survive_an_interruption(tmp_path):
    whole = read(tmp_path / "one")
    assert read(tmp_path / "two", workers=2) == whole
    assert [item[:3] for item in whole[0]][24] == (
        "val", "CLEVR_val_000000.png", "images/val/CLEVR_val_000000.png",
    )  # fmt: skip
    assert whole[0][0][-2].keys() == {"nearest_depth"}
    assert all(item[-3].keys() == LABELS.keys() for item in whole[0])

    def stop(task, done, total):
        assert (task, total) == ("render images", 36)
        if done:
            raise StopError

    with pytest.raises(StopError):
        read(tmp_path / "cut", progress=stop)
    pack, half = (tmp_path / "cut" / f"packed.{name}" for name in ("images", "part"))
    kept = half.read_text()
    assert kept.count("\n") == 16
    half.write_text(kept[:-9])  # and a kill while both were written
    pack.write_bytes(pack.read_bytes() + b"x")
    assert read(tmp_path / "cut") == whole


@given(number=st.integers(0, 10**6))
@settings(max_examples=10)
def test_a_scene_is_what_its_annotations_say(number):
    spec = ScenesSpec(image_px=32)
    objects, image, _ = draw_scene(spec, "train", number)
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


def ball(x, y, radius):
    return {"shape": "sphere", "3d_coords": [x, y, radius], "color": "red", "material": "rubber"}


def test_every_object_alone_changes_the_image():
    objects, *_ = draw_scene(ScenesSpec(image_px=32), "train", 0)
    empty = render(VIEW, [], LAMP, 32, min_seen=1)
    for thing in objects:
        assert (render(VIEW, [thing], LAMP, 32, min_seen=1) != empty).any()


def test_a_scene_that_hides_an_object_is_not_drawn():
    small, large = ball(0, 0, 0.35), ball(1.1, -1, 1.2)  # the large one stands before the small
    assert render(VIEW, [small], LAMP, 32, min_seen=5) is not None
    assert render(VIEW, [large], LAMP, 32, min_seen=5) is not None
    assert render(VIEW, [small, large], LAMP, 32, min_seen=5) is None


def test_depth_is_the_distance_along_the_optical_axis():
    across, down, depth = VIEW.project(AIM, 64)
    assert (across, down) == pytest.approx((32, 32))
    assert depth == pytest.approx(np.linalg.norm(CAMERA - AIM))
    assert VIEW.project(AIM + 0.5 * VIEW.forward, 64)[2] == pytest.approx(depth + 0.5)
    assert VIEW.project(AIM + 0.5 * VIEW.right, 64)[0] > 32
    assert VIEW.project(AIM + 0.5 * VIEW.up, 64)[1] < 32


def test_annotated_pixels_show_the_objects_colour():
    """Where a lone red ball is annotated, the image is redder than anywhere on the floor."""
    thing = ball(0.5, -0.7, 0.7)
    image = render(VIEW, [thing], LAMP, 64, min_seen=1)
    across, down, _ = VIEW.project(np.array(thing["3d_coords"]), 64)
    redness = image[..., 0].astype(int) - image[..., 2]
    assert redness[round(down), round(across)] > 50
    assert np.median(redness) < 5


def test_all_counts_distances_and_classes_occur():
    scenes = [draw_scene(ScenesSpec(image_px=16), "train", n)[0] for n in range(150)]
    assert {len(objects) for objects in scenes} == {3, 4, 5}
    depths = [min(thing["pixel_coords"][2] for thing in objects) for objects in scenes]
    shares = np.histogram(depths, [0, 8, 8.5, 9, 9.5, 10, 100])[0] / len(depths)
    assert (shares > 0.01).all()


def test_scenes_whose_objects_cannot_be_seen_end_in_one_line(monkeypatch):
    monkeypatch.setattr("ijepa.data.sources.scenes.MOST_SCENES", 3)
    with pytest.raises(IjepaError, match="none of 3 scenes all objects were well seen; make them"):
        draw_scene(parse_spec("scale=0.1,px=16"), "train", 0)


def test_a_specification_is_read_and_a_wrong_one_named():
    assert open_source("scenes:").digest() != open_source("scenes:seed=1").digest()
    assert parse_spec("") == ScenesSpec()
    spec = parse_spec("train=10,px=32,objects=3-4,scale=1,area=3,seed=5")
    assert (spec.train, spec.image_px, spec.max_objects, spec.seed) == (10, 32, 4, 5)
    for text in ("trains=1", "train", "objects=9-3", "px=0", "objects=10,scale=2,area=1"):
        with pytest.raises(IjepaError, match="scenes:"):
            parse_spec(text)
