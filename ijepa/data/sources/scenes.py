"""Embedded data: scenes after CLEVR's, rendered by ourselves.

Each scene depends on (specification, split, number) alone. Shapes, colours, materials, the camera,
the rules of placing and the labels are CLEVR's (facebookresearch/clevr-dataset-gen); the scenes of
the default specification hold fewer, larger and closer objects, so that 64 pixels show them.
"""

import hashlib
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Annotated, Any, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ijepa.config import Config, validated
from ijepa.data.processes import end_with_parent, processes
from ijepa.data.sources.clevr import LABELS, label_scene
from ijepa.data.sources.items import Found, Packed, Request, Source, as_png, packed
from ijepa.data.sources.render import Camera, Pixels, Solid, look_at, render
from ijepa.errors import IjepaError

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
TRIES = 50  # places tried for an object before the scene is begun again
SPLITS = ("train", "val")
NAMES = {"px": "image_px", "scale": "object_scale"}


class ScenesSpec(Config):
    """Which scenes to draw.

    Attributes:
        train: images of the split.
        val: images of the split.
        image_px: side of the square images.
        min_objects: in a scene, at least. CLEVR has 3 to 10.
        max_objects: in a scene, at most.
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


def rendered_scenes(text: str) -> Source:
    """Scenes of a specification, labelled as CLEVR's and under CLEVR's names."""
    spec = parse_spec(text)
    counts = {split: count for split in SPLITS if (count := getattr(spec, split))}
    every = [(split, number) for split in counts for number in range(counts[split])]

    def images(first: int, workers: int) -> Generator[Packed]:
        if workers == 0:
            yield from map(partial(_drawn, spec), every[first:])
            return
        pool = ProcessPoolExecutor(workers, processes(), initializer=end_with_parent)
        try:
            yield from pool.map(partial(_drawn, spec), every[first:], chunksize=32)
        finally:
            pool.shutdown(cancel_futures=True)  # else all scenes are drawn before Ctrl-C ends it

    def find(asked: Request) -> Found:
        drawn = partial(images, workers=asked.workers)
        items = packed(drawn, asked, "render images", len(every))
        return dict.fromkeys(counts, LABELS), lambda _: items, Counter()

    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    return Source(f"scenes:{text}", lambda: digest, find)


def parse_spec(text: str) -> ScenesSpec:
    """Read `train=10000,val=6000,px=64,objects=3-5,scale=1.5,area=3.2,seed=0`; all optional."""
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


def draw_scene(spec: ScenesSpec, split: str, number: int) -> tuple[list[dict[str, Any]], Pixels]:
    """Draw one scene, whatever the others are; begun again until every object is well seen.

    Returns:
        Objects with CLEVR's fields, and the image (px, px, 3) uint8.
    """
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), number])
    while True:
        camera = look_at(CAMERA + rng.uniform(-JITTER, JITTER, 3), AIM, HALF_WIDTH)
        lamp = LAMP + rng.uniform(-2 * JITTER, 2 * JITTER, 3)
        objects = _placed(spec, camera, rng)
        if objects is None:
            continue
        solids = [solid_of(thing) for thing in objects]
        image = render(camera, solids, lamp, spec.image_px, MIN_SEEN * spec.image_px**2)
        if image is not None:
            return objects, image


def solid_of(thing: dict[str, Any]) -> Solid:
    """What is rendered for an object with CLEVR's fields."""
    centre = np.array(thing["3d_coords"])
    return Solid(
        shape=thing["shape"],
        centre=centre,
        half_height=float(centre[2]),
        turn=float(np.radians(thing["rotation"])),
        colour=np.array(COLOURS[thing["color"]]) / 255,
        is_metal=thing["material"] == "metal",
    )


def _drawn(spec: ScenesSpec, place: tuple[str, int]) -> Packed:
    split, number = place
    objects, image = draw_scene(spec, split, number)
    labels, depth = label_scene({"objects": objects})
    name = f"CLEVR_{split}_{number:06d}.png"
    facts = (as_png(Image.fromarray(image)), labels, {"nearest_depth": depth})
    return split, name, f"images/{split}/{name}", *facts


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
        across, down, depth = camera.project(np.array(centre), spec.image_px)
        objects.append(
            {
                "shape": shape,
                "size": size,
                "material": str(rng.choice(MATERIALS)),
                "color": str(rng.choice(list(COLOURS))),
                "3d_coords": centre,
                "rotation": float(rng.uniform(0, 360)),
                "pixel_coords": [round(across), round(down), depth],
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
