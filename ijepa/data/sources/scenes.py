"""Embedded data: CLEVR-like scenes, rendered by ourselves in CLEVR's own layout.

Each scene depends on (specification, split, number) alone. Shapes, colours, materials, the camera
and the rules of placing are CLEVR's (facebookresearch/clevr-dataset-gen); the scenes of the default
specification hold fewer, larger and closer objects, so that 64 pixels show them.
"""

import io
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ijepa.config import Config, validated
from ijepa.data.processes import end_with_parent, processes
from ijepa.data.sources.render import Camera, Pixels, Solid, look_at, render
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.stage import write_bytes

SHAPES = ("cube", "cylinder", "sphere")
SIZES = {"large": 0.7, "small": 0.35}  # radius in CLEVR's units
MATERIALS = ("metal", "rubber")
COLOURS = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
CAMERA, AIM = np.array([7.2, -6.5, 5.4]), np.array([0.0, 0.0, 0.4])
JITTER = 0.5  # of the camera, each way; twice that of the lamp
LAMP = np.array([-2.5, -5.0, 8.0])
HALF_WIDTH = 0.325  # of the image plane at distance 1: a field of view of 36 degrees
MARGIN = 0.15  # between objects
BORDER = 0.1  # of the image, where no object has its middle
MIN_SEEN = 0.004  # of the image's pixels, for each object
MIN_DIRECTED = 0.2  # CLEVR calls an object left of another if it is by this much
TRIES = 50  # places tried for an object before the scene is begun again
SPLITS = ("train", "val")
NOTES = "notes"
NAMES = {"px": "image_px", "objects": "objects", "scale": "object_scale", "area": "area"}


class ScenesSpec(Config):
    """Which scenes to draw.

    Attributes:
        train: images of the split; likewise `val`.
        image_px: side of the square images.
        min_objects: in a scene; likewise `max_objects`. CLEVR has 3 to 10.
        object_scale: factor on CLEVR's two radii, 0.7 and 0.35.
        area: objects stand within this distance of the middle, along both axes. CLEVR: 3.
        seed: of everything.
    """

    train: Annotated[int, Field(ge=0)] = 10_000
    val: Annotated[int, Field(ge=0)] = 6000
    image_px: Annotated[int, Field(ge=8, le=1024)] = 64
    min_objects: Annotated[int, Field(ge=3, le=10)] = 3
    max_objects: Annotated[int, Field(ge=3, le=10)] = 5
    object_scale: Annotated[float, Field(gt=0, le=2)] = 1.5
    area: Annotated[float, Field(gt=0, le=4)] = 3.2
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _objects_fit(self) -> Self:
        if self.min_objects > self.max_objects:
            raise ValueError(f"objects {self.min_objects}-{self.max_objects} is an empty range")
        needed = self.max_objects * np.pi * (0.55 * self.object_scale + MARGIN) ** 2
        if needed > 0.75 * (2 * self.area + self.object_scale) ** 2:
            raise ValueError(
                f"{self.max_objects} objects of scale {self.object_scale} do not fit into "
                f"area {self.area}"
            )
        return self


class Scene(NamedTuple):
    """A drawn scene: CLEVR's annotations, and the image (px, px, 3) uint8."""

    annotations: dict[str, Any]
    image: Pixels


def parse_spec(text: str) -> ScenesSpec:
    """Read `train=10000,val=6000,px=64,objects=3-5,scale=1.5,area=3.2,seed=0`; all optional.

    Raises:
        IjepaError: an unknown name or a value out of range.
    """
    values: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise IjepaError(f"scenes:{text}: {part!r} has no '='; write it as train=8000.")
        if name == "objects":
            least, dash, most = value.partition("-")
            values |= {"min_objects": least, "max_objects": most if dash else least}
        else:
            values[NAMES.get(name, name)] = value
    return validated(ScenesSpec, values, f"scenes:{text}")


def render_scenes(
    spec: ScenesSpec, folder: Path, workers: int, progress: Progress = silent
) -> None:
    """Write `images/<split>/CLEVR_<split>_%06d.png` and `scenes/CLEVR_<split>_scenes.json`.

    Goes on where it was stopped; the bytes do not depend on `workers`.
    """
    counts = {"train": spec.train, "val": spec.val}
    done = 0
    for split in SPLITS:
        for part in (folder / "images" / split, folder / "scenes", _notes(folder, split)):
            part.mkdir(parents=True, exist_ok=True)
        path = folder / "scenes" / f"CLEVR_{split}_scenes.json"
        if counts[split] and not path.exists():
            scenes = []
            for annotations in _drawn(spec, split, counts[split], folder, workers):
                scenes.append(annotations)
                progress("render images", done + len(scenes), sum(counts.values()))
            info = {"split": split, "version": "1.0", "date": "", "license": "MIT"}
            write_bytes(path, json.dumps({"info": info, "scenes": scenes}).encode())
        done += counts[split]
    shutil.rmtree(folder / NOTES, ignore_errors=True)


def draw_scene(spec: ScenesSpec, split: str, number: int) -> Scene:
    """Draw one scene, whatever the others are; begun again until every object is well seen."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), number])
    while True:
        camera = look_at(CAMERA + rng.uniform(-JITTER, JITTER, 3), AIM, HALF_WIDTH)
        lamp = LAMP + rng.uniform(-2 * JITTER, 2 * JITTER, 3)
        objects = _placed(spec, camera, rng)
        if objects is None:
            continue
        solids = [_solid(thing) for thing in objects]
        image = render(camera, solids, lamp, spec.image_px, MIN_SEEN * spec.image_px**2)
        if image is not None:
            return Scene(_annotations(split, number, camera, objects), image)


def _drawn(
    spec: ScenesSpec, split: str, count: int, folder: Path, workers: int
) -> Iterator[dict[str, Any]]:
    """Annotations in order; the images are written on the way."""
    write = partial(_write_scene, spec, split, folder)
    if workers == 0:
        yield from map(write, range(count))
        return
    pool = ProcessPoolExecutor(workers, mp_context=processes(), initializer=end_with_parent)
    with pool:
        yield from pool.map(write, range(count), chunksize=32)


def _write_scene(spec: ScenesSpec, split: str, folder: Path, number: int) -> dict[str, Any]:
    """Draw and write one image beside its annotations, unless an earlier run did."""
    name = f"CLEVR_{split}_{number:06d}.png"
    path = folder / "images" / split / name
    note = _notes(folder, split) / f"{number:06d}.json"
    if path.exists() and note.exists():
        return dict(json.loads(note.read_text()))
    scene = draw_scene(spec, split, number)
    encoded = io.BytesIO()
    Image.fromarray(scene.image).save(encoded, "PNG")
    for target, content in (
        (note, json.dumps(scene.annotations).encode()),
        (path, encoded.getvalue()),
    ):
        # Renamed but not flushed to disk: a kill leaves whole files, and waiting twice an image
        # for the disk would take longer than drawing.
        unfinished = target.with_suffix(".tmp")
        unfinished.write_bytes(content)
        unfinished.replace(target)
    return scene.annotations


def _notes(folder: Path, split: str) -> Path:
    """Annotations of the images that are drawn, until all are."""
    return folder / NOTES / split


def _placed(
    spec: ScenesSpec, camera: Camera, rng: np.random.Generator
) -> list[dict[str, Any]] | None:
    """Objects at a distance from each other, with CLEVR's fields; None if they do not fit."""
    objects: list[dict[str, Any]] = []
    for _ in range(rng.integers(spec.min_objects, spec.max_objects + 1)):
        size = str(rng.choice(list(SIZES)))
        radius = SIZES[size] * spec.object_scale
        place = _free_place(spec, radius, objects, camera, rng)
        if place is None:
            return None
        shape = str(rng.choice(SHAPES))
        half_height = radius / np.sqrt(2) if shape == "cube" else radius
        centre = [*place, float(half_height)]
        objects.append(
            {
                "shape": shape,
                "size": size,
                "material": str(rng.choice(MATERIALS)),
                "color": str(rng.choice(list(COLOURS))),
                "3d_coords": centre,
                "rotation": float(rng.uniform(0, 360)),
                "pixel_coords": _pixel_coords(camera, centre, spec.image_px),
                "radius": radius,
            }
        )
    return objects


def _free_place(
    spec: ScenesSpec,
    radius: float,
    objects: list[dict[str, Any]],
    camera: Camera,
    rng: np.random.Generator,
) -> list[float] | None:
    """Where a thing of that radius touches no other and has its middle well in the image."""
    for _ in range(TRIES):
        place = rng.uniform(-spec.area, spec.area, 2)
        gaps = [
            np.linalg.norm(place - thing["3d_coords"][:2]) - radius - thing["radius"]
            for thing in objects
        ]
        *pixel, _ = camera.project(np.array([*place, radius]), 1)
        in_image = min(pixel) > BORDER and max(pixel) < 1 - BORDER
        if in_image and min(gaps, default=MARGIN) >= MARGIN:
            return [float(value) for value in place]
    return None


def _pixel_coords(camera: Camera, centre: list[float], image_px: int) -> list[float]:
    """CLEVR's: whole pixels from the top left, and the depth along the optical axis."""
    across, down, depth = camera.project(np.array(centre), image_px)
    return [round(across), round(down), depth]


def _solid(thing: dict[str, Any]) -> Solid:
    centre = np.array(thing["3d_coords"])
    return Solid(
        shape=thing["shape"],
        centre=centre,
        half_height=float(centre[2]),
        turn=float(np.radians(thing["rotation"])),
        colour=np.array(COLOURS[thing["color"]]) / 255,
        is_metal=thing["material"] == "metal",
    )


def _annotations(
    split: str, number: int, camera: Camera, objects: list[dict[str, Any]]
) -> dict[str, Any]:
    directions = _directions(camera)
    return {
        "split": split,
        "image_index": number,
        "image_filename": f"CLEVR_{split}_{number:06d}.png",
        "objects": [{k: v for k, v in thing.items() if k != "radius"} for thing in objects],
        "directions": directions,
        "relationships": {
            name: _related(direction, objects)
            for name, direction in directions.items()
            if name not in ("above", "below")
        },
    }


def _directions(camera: Camera) -> dict[str, list[float]]:
    """On the floor, as the camera sees it."""
    behind = np.array([camera.forward[0], camera.forward[1], 0.0])
    behind /= np.linalg.norm(behind)
    vectors = {"behind": behind, "right": camera.right, "above": np.array([0.0, 0.0, 1.0])}
    opposite = {"behind": "front", "right": "left", "above": "below"}
    both = vectors | {opposite[name]: -vector for name, vector in vectors.items()}
    return {name: [float(value) for value in vector] for name, vector in both.items()}


def _related(direction: list[float], objects: list[dict[str, Any]]) -> list[list[int]]:
    """For each object, the others that lie in that direction of it."""
    along = [float(np.dot(direction, thing["3d_coords"])) for thing in objects]
    return [
        [other for other, there in enumerate(along) if there > here + MIN_DIRECTED]
        for here in along
    ]
