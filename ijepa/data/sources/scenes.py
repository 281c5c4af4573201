"""Embedded data: scenes after CLEVR's, drawn by a small ray caster of our own.

Each scene depends on (specification, split, number) alone. Shapes, colours, materials, the camera,
the rules of placing and the labels are CLEVR's (facebookresearch/clevr-dataset-gen); the scenes of
the default specification hold fewer, larger and closer objects, so that 64 pixels show them. World
units are CLEVR's, z points up, the floor is z = 0; everything is vectorised over rays.
"""

import hashlib
from collections import Counter
from collections.abc import Generator
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from ijepa.arrays import Floats, Ints, Pixels
from ijepa.config import Config, validated
from ijepa.data.decode import DenseLabel
from ijepa.data.sources.items import Listing, NewImage, Request, Source, as_png, packed
from ijepa.data.sources.layouts import COLOURS, LABELS, SHAPES, label_scene
from ijepa.errors import IjepaError
from ijepa.world import process_pool

Depths = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
Thing = dict[str, Any]  # an object with CLEVR's fields; it stands on the floor

DENSE = {  # labels of the maps; class 0 is the floor
    "shape": DenseLabel(names=("background", *SHAPES)),
    "color": DenseLabel(names=("background", *COLOURS)),
    "depth": DenseLabel(kind="depth", unit="CLEVR units"),
}
SIZES = {"large": 0.7, "small": 0.35}  # radius in CLEVR's units
MATERIALS = ("metal", "rubber")
CAMERA, AIM = np.array([7.2, -6.5, 5.4]), np.array([0.0, 0.0, 0.4])
JITTER = 0.5  # of the camera, each way; twice that of the lamp
LAMP = np.array([-2.5, -5.0, 8.0])
HALF_WIDTH = 0.325  # of the image plane at distance 1: a field of view of 36 degrees
MARGIN = 0.15  # between objects
BORDER = 0.1  # of the image, where no object has its middle
MIN_SEEN = 0.004  # of the image's pixels, for each object
TRIES = 50  # places tried for an object before the scene is begun again
MOST_SCENES = 5_000  # begun for one image; few are where its objects can be seen
SPLITS = ("train", "val")
NAMES = {"px": "image_px", "scale": "object_scale"}

SUPERSAMPLING = 2  # rays a pixel, each way
NEAR = 1e-3  # a hit nearer than this is the surface that the ray starts from
NEVER = np.float32(np.inf)
FLOOR_GREY, FLOOR_FALLOFF = 0.62, 0.012  # at the origin, and less a unit away from it
FILL_DIRECTION = np.array([0.6, -0.3, 0.74], dtype=np.float32)
AMBIENT, KEY, FILL, SHADOW = 0.25, 0.75, 0.25, 0.25


class ScenesSpec(Config):
    """Which scenes to draw; CLEVR has 3 to 10 objects of scale 1 in an area of 3."""

    train: Annotated[int, Field(ge=0)] = 10_000
    val: Annotated[int, Field(ge=0)] = 6000
    image_px: Annotated[int, Field(ge=8, le=1024)] = 64  # side of the square images
    min_objects: Annotated[int, Field(ge=3, le=10)] = 3
    max_objects: Annotated[int, Field(ge=3, le=10)] = 5
    object_scale: Annotated[float, Field(gt=0, le=2)] = 1.5  # factor on CLEVR's two radii
    area: Annotated[float, Field(gt=0, le=4)] = 3.2  # objects stand within, along both axes
    seed: Annotated[int, Field(ge=0)] = 0
    dense: Literal["no", "yes"] = "no"  # maps of shape, colour and depth beside each image?

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

    def images(workers: int, first: int) -> Generator[NewImage]:
        if workers == 0:
            yield from map(partial(_drawn, spec), every[first:])
            return
        with process_pool(workers) as pool:
            yield from pool.map(partial(_drawn, spec), every[first:], chunksize=32)

    def find(request: Request) -> Listing:
        items = packed(partial(images, request.workers), request, "render images", len(every))
        return Listing(dict.fromkeys(counts, LABELS), items, Counter())

    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    return Source(
        f"scenes:{text}", lambda: digest, find, dense=DENSE if spec.dense == "yes" else {}
    )


def parse_spec(text: str) -> ScenesSpec:
    """Read `train=10000,val=6000,px=64,objects=3-5,scale=1.5,area=3.2,seed=0`; all optional.

    With `dense=yes`, maps of shape, colour and depth are rendered, too.
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


def _drawn(spec: ScenesSpec, place: tuple[str, int]) -> NewImage:
    split, number = place
    objects, image, camera = draw_scene(spec, split, number)
    labels, depth = label_scene({"objects": objects})
    name = f"CLEVR_{split}_{number:06d}.png"
    facts = (as_png(Image.fromarray(image)), labels, {"nearest_depth": depth})
    maps = draw_maps(camera, objects, spec.image_px) if spec.dense == "yes" else {}
    dense = {label: as_png(Image.fromarray(values)) for label, values in maps.items()}
    return split, name, f"images/{split}/{name}", *facts, dense


class Camera(NamedTuple):
    """A pinhole camera in the world."""

    position: Floats  # (3,)
    forward: Floats  # (3,) unit vector of the optical axis
    right: Floats
    up: Floats

    def project(self, point: Floats, image_px: int) -> tuple[float, float, float]:
        """Pixel column, pixel row and depth along the optical axis of a point (3,)."""
        offset = point - self.position
        depth = float(offset @ self.forward)
        across = float(offset @ self.right) / (depth * HALF_WIDTH)
        above = float(offset @ self.up) / (depth * HALF_WIDTH)
        return (across + 1) / 2 * image_px, (1 - above) / 2 * image_px, depth


def look_at(position: Floats, target: Floats) -> Camera:
    """A camera that looks from one point to another, its right side level."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return Camera(position, forward, right, np.cross(right, forward))


def draw_scene(spec: ScenesSpec, split: str, number: int) -> tuple[list[Thing], Pixels, Camera]:
    """Objects with CLEVR's fields, the image (px, px, 3) uint8 and what took it.

    Whatever other scenes are. The scene is begun again until every object is well seen; an
    `IjepaError` if none is.
    """
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), number])
    for _ in range(MOST_SCENES):
        camera = look_at(CAMERA + rng.uniform(-JITTER, JITTER, 3), AIM)
        lamp = LAMP + rng.uniform(-2 * JITTER, 2 * JITTER, 3)
        objects = _placed(spec, camera, rng)
        if objects is None:
            continue
        image = render(camera, objects, lamp, spec.image_px, MIN_SEEN * spec.image_px**2)
        if image is not None:
            return objects, image, camera
    raise IjepaError(
        f"In none of {MOST_SCENES:,} scenes all objects were well seen; make them larger or fewer, "
        f"as in scenes:scale=1.5,objects=3-5."
    )


def _placed(spec: ScenesSpec, camera: Camera, rng: np.random.Generator) -> list[Thing] | None:
    """Objects at a distance from each other, with CLEVR's fields; None if they do not fit."""
    objects: list[Thing] = []
    for _ in range(rng.integers(spec.min_objects, spec.max_objects + 1)):
        size = str(rng.choice(list(SIZES)))
        radius = SIZES[size] * spec.object_scale
        for _ in range(TRIES):
            place = rng.uniform(-spec.area, spec.area, 2)
            gaps = [
                np.linalg.norm(place - thing["3d_coords"][:2]) - radius - thing["radius"]
                for thing in objects
            ]
            *pixel, _ = camera.project(np.array([*place, radius]), 1)
            in_image = min(pixel) > BORDER and max(pixel) < 1 - BORDER
            if in_image and min(gaps, default=MARGIN) >= MARGIN:
                break
        else:
            return None
        shape = str(rng.choice(SHAPES))
        half_height = radius / np.sqrt(2) if shape == "cube" else radius
        centre = [*map(float, place), float(half_height)]
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


def render(
    camera: Camera, objects: list[Thing], lamp: Floats, image_px: int, min_seen: float
) -> Pixels | None:
    """Draw objects on a grey floor, lit by a lamp with shadows and by a weak fill light.

    Returns (image_px, image_px, 3) uint8; None if of an object fewer than `min_seen` pixels are
    seen, for others or the border hide it. Objects must not touch; the lamp is at (3,).
    """
    rays, distance, normal, owner = _seen(camera, objects, image_px * SUPERSAMPLING)
    seen = np.bincount(owner + 1, minlength=len(objects) + 1)[1:] / SUPERSAMPLING**2
    if seen.min(initial=np.inf) < min_seen:
        return None
    points = camera.position.astype(np.float32) + rays * distance[:, None] + normal * NEAR
    # Lambert with ambient and fill light, Blinn's highlight, and a sky that metal mirrors.
    to_lamp = _unit(lamp.astype(np.float32) - points)
    is_dark = np.zeros(len(points), dtype=bool)
    for thing in objects:
        near, hit, _ = _hits(points, to_lamp, thing)
        is_dark[near] |= hit < NEVER
    lit = np.where(is_dark, SHADOW, 1.0)
    key = np.maximum(_dot(normal, to_lamp), 0) * lit
    fill = np.maximum(_dot(normal, FILL_DIRECTION), 0)
    light = AMBIENT + KEY * key + FILL * fill
    is_metal = np.append([thing["material"] == "metal" for thing in objects], False)[owner]
    away = np.sqrt(_dot(points[:, :2], points[:, :2]))
    floor = np.clip(FLOOR_GREY - FLOOR_FALLOFF * away, 0.3, FLOOR_GREY)
    colours = [np.array(COLOURS[thing["color"]]) / 255 for thing in objects]
    palette = np.array([*colours, np.zeros(3)], dtype=np.float32)
    base = np.where(owner[:, None] < 0, floor[:, None], palette[owner])
    colour: Floats = base * np.where(is_metal, 0.75, 1.0)[:, None] * light[:, None]
    on = np.flatnonzero(owner >= 0)  # the floor does not shine
    normal, rays, is_metal = normal[on], rays[on], is_metal[on]
    half = np.maximum(_dot(normal, _unit(to_lamp[on] - rays)), 0)
    highlight = np.where(is_metal, 0.9 * half**60, 0.15 * half**12) * lit[on]
    mirrored_up = rays[:, 2] - 2 * _dot(rays, normal) * normal[:, 2]
    sky = np.where(is_metal, 0.35 * np.clip(mirrored_up, 0, 1), 0)
    colour[on] += (highlight + sky)[:, None]
    blocks = np.clip(colour, 0, 1).reshape(image_px, SUPERSAMPLING, image_px, SUPERSAMPLING, 3)
    pixels: Pixels = (blocks.mean(axis=(1, 3)) * 255).round().astype(np.uint8)
    return pixels


def draw_maps(camera: Camera, objects: list[Thing], image_px: int) -> dict[str, Depths]:
    """Maps (image_px, image_px) uint16 of the surface in the middle of each pixel, see `DENSE`.

    Depth is along the optical axis, in thousandths of CLEVR's units.
    """
    rays, distance, _, owner = _seen(camera, objects, image_px)
    depth = distance * _dot(rays, camera.forward.astype(np.float32)) / DENSE["depth"].scale
    shapes = [1 + SHAPES.index(thing["shape"]) for thing in objects]
    colours = [1 + list(COLOURS).index(thing["color"]) for thing in objects]
    maps = {"shape": np.array([*shapes, 0])[owner], "color": np.array([*colours, 0])[owner]}
    maps["depth"] = depth.round().clip(1, np.iinfo(np.uint16).max)
    return {name: m.reshape(image_px, image_px).astype(np.uint16) for name, m in maps.items()}


def _seen(camera: Camera, objects: list[Thing], side: int) -> tuple[Floats, Floats, Floats, Ints]:
    """Rays through side x side pixels, row by row, and the first surface on each.

    Unit vectors (n, 3), distances (n,), normals (n, 3), and numbers of objects, -1 for the floor.
    """
    across = ((np.arange(side) + 0.5) / side * 2 - 1) * HALF_WIDTH
    plane = across[None, :, None] * camera.right - across[:, None, None] * camera.up
    rays = _unit((camera.forward + plane).reshape(-1, 3)).astype(np.float32)
    origin = camera.position.astype(np.float32)
    distance: Floats = -origin[2] / np.minimum(rays[:, 2], -1e-3)  # of the floor
    normal: Floats = np.tile(np.array([0, 0, 1], dtype=np.float32), (len(rays), 1))
    owner = np.full(len(rays), -1)
    for number, thing in enumerate(objects):
        near, hit, direction = _hits(origin, rays, thing)
        first = hit < distance[near]
        chosen = near[first]
        distance[chosen], normal[chosen], owner[chosen] = hit[first], direction[first], number
    return rays, distance, normal, owner


def _hits(origin: Floats, rays: Floats, thing: Thing) -> tuple[Ints, Floats, Floats]:
    """Numbers of the rays that may hit an object, and of these, distance (or NEVER) and normal.

    Rays (n, 3) start at one `origin` (3,), or each at its own (n, 3). Those that miss the ball
    around the object cannot hit it; a cube's corner is the farthest from its centre.
    """
    half = float(thing["3d_coords"][2])  # of the height; also the radius, or half a cube's side
    start = origin - np.array(thing["3d_coords"], np.float32)
    away = _dot(start, start) - _dot(rays, start) ** 2
    near: Ints = np.flatnonzero(away < 3 * half**2)
    start = start if start.ndim == 1 else start[near]
    if thing["shape"] == "cube":
        return near, *_hit_cube(start, rays[near], half, np.radians(thing["rotation"]))
    hit = {"sphere": _hit_sphere, "cylinder": _hit_cylinder}[thing["shape"]]
    return near, *hit(start, rays[near], half)


def _hit_sphere(start: Floats, rays: Floats, half: float) -> tuple[Floats, Floats]:
    """Distance and normal; `start` (3,) or (n, 3) is relative to the centre, for all shapes."""
    toward = _dot(start, rays)
    root = toward**2 - _dot(start, start) + half**2
    distance = _ahead(-toward - np.sqrt(np.maximum(root, 0)), root > 0)
    return distance, _at(start, rays, distance) / half


def _hit_cube(start: Floats, rays: Floats, half: float, turn: float) -> tuple[Floats, Floats]:
    """The three slabs of the cube, in its own axes."""
    cos, sin = np.cos(turn), np.sin(turn)
    axes = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=np.float32)
    local_start, local_rays = _turned(start, axes), _turned(rays, axes)
    slope = 1 / np.where(np.abs(local_rays) < 1e-9, 1e-9, local_rays)
    one = (-half - local_start) * slope
    other = (half - local_start) * slope
    enter, leave = np.minimum(one, other), np.maximum(one, other)
    face, rows = enter.argmax(axis=1), np.arange(len(rays))
    distance = _ahead(enter[rows, face], enter[rows, face] < leave.min(axis=1))
    normal: Floats = np.zeros_like(local_rays)
    normal[rows, face] = -np.sign(local_rays[rows, face])
    return distance, _turned(normal, axes.T)


def _hit_cylinder(start: Floats, rays: Floats, half: float) -> tuple[Floats, Floats]:
    """The wall and the top; the bottom stands on the floor."""
    level, flat = start[..., :2], rays[:, :2]
    square = _dot(flat, flat) + 1e-12
    toward = _dot(level, flat)
    root = toward**2 - square * (_dot(level, level) - half**2)
    wall: Floats = (-toward - np.sqrt(np.maximum(root, 0))) / square
    wall = _ahead(wall, (root > 0) & (np.abs(start[..., 2] + wall * rays[:, 2]) < half))
    steep = np.where(np.abs(rays[:, 2]) < 1e-9, 1e-9, rays[:, 2])
    top: Floats = (half - start[..., 2]) / steep
    on_top = level + top[:, None] * flat
    top = _ahead(top, _dot(on_top, on_top) < half**2)
    normal = _at(start, rays, np.minimum(wall, top)) / half
    normal[:, 2] = 0
    normal[top < wall] = (0, 0, 1)
    return np.minimum(wall, top), normal


def _ahead(distance: Floats, is_hit: np.ndarray[Any, Any]) -> Floats:
    return np.where(is_hit & (distance > NEAR), distance, NEVER)


def _at(start: Floats, rays: Floats, distance: Floats) -> Floats:
    """The point on each ray, the start where nothing is hit."""
    return start + rays * np.where(distance < NEVER, distance, 0)[:, None]


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.sqrt(_dot(vectors, vectors))[:, None]
    return unit


def _turned(vectors: Floats, axes: Floats) -> Floats:
    """Coordinates of vectors (..., 3) along three axes; no BLAS, whose threads cost more here."""
    turned: Floats = np.einsum("...j,ij->...i", vectors, axes)
    return turned


def _dot(one: Floats, other: Floats) -> Floats:
    """Products of rows; einsum is many times faster here than `(one * other).sum(axis=-1)`."""
    products: Floats = np.einsum("...i,...i->...", one, other)
    return products
