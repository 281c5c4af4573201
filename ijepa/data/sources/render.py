"""A small ray caster for spheres, cubes and cylinders that stand on a floor.

Everything is vectorised over rays; world units are CLEVR's, z points up, the floor is z = 0.
"""

from typing import Any, NamedTuple

import numpy as np

Floats = np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

SUPERSAMPLING = 2  # rays a pixel, each way
NEAR = 1e-3  # a hit nearer than this is the surface that the ray starts from
NEVER = np.float32(np.inf)
FLOOR_GREY, FLOOR_FALLOFF = 0.62, 0.012  # at the origin, and less a unit away from it
FILL_DIRECTION = np.array([0.6, -0.3, 0.74], dtype=np.float32)
AMBIENT, KEY, FILL, SHADOW = 0.25, 0.75, 0.25, 0.25


class Camera(NamedTuple):
    """A pinhole camera.

    Attributes:
        position: (3,) in the world.
        forward: (3,) unit vector of the optical axis; likewise `right` and `up`.
        half_width: of the image plane at distance 1.
    """

    position: Floats
    forward: Floats
    right: Floats
    up: Floats
    half_width: float

    def project(self, point: Floats, image_px: int) -> tuple[float, float, float]:
        """Pixel column, pixel row and depth along the optical axis of a point (3,)."""
        offset = point - self.position
        depth = float(offset @ self.forward)
        across = float(offset @ self.right) / (depth * self.half_width)
        above = float(offset @ self.up) / (depth * self.half_width)
        return (across + 1) / 2 * image_px, (1 - above) / 2 * image_px, depth

    def rays(self, side: int) -> Floats:
        """(side * side, 3) unit directions, row by row from the top left."""
        across = ((np.arange(side) + 0.5) / side * 2 - 1) * self.half_width
        plane = across[None, :, None] * self.right - across[:, None, None] * self.up
        directions = (self.forward + plane).reshape(-1, 3)
        directions /= np.sqrt(_dot(directions, directions))[:, None]
        return directions.astype(np.float32)


class Solid(NamedTuple):
    """One thing on the floor.

    Attributes:
        shape: `sphere`, `cube` or `cylinder`.
        centre: (3,).
        half_height: also the radius, or half a cube's side.
        turn: of a cube about the vertical, radians.
        colour: (3,) 0 to 1.
        is_metal: shiny, or matt.
    """

    shape: str
    centre: Floats
    half_height: float
    turn: float
    colour: Floats
    is_metal: bool


def look_at(position: Floats, target: Floats, half_width: float) -> Camera:
    """A camera that looks from one point to another, its right side level."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return Camera(position, forward, right, np.cross(right, forward), half_width)


def render(
    camera: Camera, solids: list[Solid], lamp: Floats, image_px: int, min_seen: float
) -> Pixels | None:
    """Draw solids on a grey floor, lit by a lamp with shadows and by a weak fill light.

    Args:
        camera: where from.
        solids: what; they must not touch each other.
        lamp: (3,) position of the key light.
        image_px: side of the image.
        min_seen: pixels of each solid that must be seen.

    Returns:
        (image_px, image_px, 3) uint8, or None if a solid is hidden too far by others or the border.
    """
    side = image_px * SUPERSAMPLING
    rays = camera.rays(side)
    origin = camera.position.astype(np.float32)
    distance, normal, owner = _first_hits(origin, rays, solids)
    seen = np.bincount(owner + 1, minlength=len(solids) + 1)[1:] / SUPERSAMPLING**2
    if seen.min(initial=np.inf) < min_seen:
        return None
    points = origin + rays * distance[:, None] + normal * NEAR
    colour = _shade(points, normal, owner, rays, solids, lamp)
    blocks = np.clip(colour, 0, 1).reshape(image_px, SUPERSAMPLING, image_px, SUPERSAMPLING, 3)
    pixels: Pixels = (blocks.mean(axis=(1, 3)) * 255).round().astype(np.uint8)
    return pixels


def _first_hits(origin: Floats, rays: Floats, solids: list[Solid]) -> tuple[Floats, Floats, Ints]:
    """Distance, surface normal and number of the first solid on each ray; -1 is the floor."""
    downward = np.minimum(rays[:, 2], -1e-3)
    distance = -origin[2] / downward
    normal: Floats = np.tile(np.array([0, 0, 1], dtype=np.float32), (len(rays), 1))
    owner = np.full(len(rays), -1)
    for number, solid in enumerate(solids):
        start = origin - _centre(solid)
        near = _near(start, rays, solid)
        hit, direction = INTERSECT[solid.shape](start, rays[near], solid)
        first = hit < distance[near]
        chosen = near[first]
        distance[chosen], normal[chosen], owner[chosen] = hit[first], direction[first], number
    return distance, normal, owner


def _near(start: Floats, rays: Floats, solid: Solid) -> Ints:
    """Numbers of the rays that pass the ball around a solid; the others cannot hit it."""
    along = _dot(rays, start)
    reach = 3 * solid.half_height**2  # a cube's corner is the farthest
    numbers: Ints = np.flatnonzero(_dot(start, start) - along**2 < reach)
    return numbers


def _shade(
    points: Floats,
    normal: Floats,
    owner: Ints,
    rays: Floats,
    solids: list[Solid],
    lamp: Floats,
) -> Floats:
    """Lambert with ambient and fill light, Blinn's highlight, and a sky that metal mirrors."""
    to_lamp = _unit(lamp.astype(np.float32) - points)
    lit = np.where(_in_shadow(points, to_lamp, solids), SHADOW, 1.0)
    key = np.maximum(_dot(normal, to_lamp), 0) * lit
    fill = np.maximum(_dot(normal, FILL_DIRECTION), 0)
    light = AMBIENT + KEY * key + FILL * fill
    metal = np.append([solid.is_metal for solid in solids], False)[owner]
    base = _base_colour(points, owner, solids) * np.where(metal, 0.75, 1.0)[:, None]
    colour: Floats = base * light[:, None]
    solid = np.flatnonzero(owner >= 0)  # the floor does not shine
    shine = _shine(normal[solid], rays[solid], to_lamp[solid], metal[solid], lit[solid])
    colour[solid] += shine[:, None]
    return colour


def _shine(
    normal: Floats, rays: Floats, to_lamp: Floats, metal: np.ndarray[Any, Any], lit: Floats
) -> Floats:
    half = np.maximum(_dot(normal, _unit(to_lamp - rays)), 0)
    highlight = np.where(metal, 0.9 * half**60, 0.15 * half**12) * lit
    mirrored_up = rays[:, 2] - 2 * _dot(rays, normal) * normal[:, 2]
    sky: Floats = np.where(metal, 0.35 * np.clip(mirrored_up, 0, 1), 0)
    return highlight + sky


def _base_colour(points: Floats, owner: Ints, solids: list[Solid]) -> Floats:
    away = np.sqrt(_dot(points[:, :2], points[:, :2]))
    floor = np.clip(FLOOR_GREY - FLOOR_FALLOFF * away, 0.3, FLOOR_GREY)
    palette = np.array([*(solid.colour for solid in solids), np.zeros(3)], dtype=np.float32)
    return np.where(owner[:, None] < 0, floor[:, None], palette[owner])


def _in_shadow(points: Floats, to_lamp: Floats, solids: list[Solid]) -> np.ndarray[Any, Any]:
    dark = np.zeros(len(points), dtype=bool)
    for solid in solids:
        start = points - _centre(solid)
        near = _near(start, to_lamp, solid)
        hit, _ = INTERSECT[solid.shape](start[near], to_lamp[near], solid)
        dark[near] |= hit < NEVER
    return dark


def _hit_sphere(start: Floats, rays: Floats, solid: Solid) -> tuple[Floats, Floats]:
    """Distance and normal; `start` (3,) or (n, 3) is relative to the centre, for all shapes."""
    toward = _dot(start, rays)
    root = toward**2 - _dot(start, start) + solid.half_height**2
    distance = _ahead(-toward - np.sqrt(np.maximum(root, 0)), root > 0)
    return distance, _at(start, rays, distance) / solid.half_height


def _hit_cube(start: Floats, rays: Floats, solid: Solid) -> tuple[Floats, Floats]:
    """The three slabs of the cube, in its own axes."""
    cos, sin = np.cos(solid.turn), np.sin(solid.turn)
    axes = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], dtype=np.float32)
    local_start, local_rays = _turned(start, axes), _turned(rays, axes)
    slope = 1 / np.where(np.abs(local_rays) < 1e-9, 1e-9, local_rays)
    one, other = (
        (-solid.half_height - local_start) * slope,
        (solid.half_height - local_start) * slope,
    )
    enter, leave = np.minimum(one, other), np.maximum(one, other)
    face, rows = enter.argmax(axis=1), np.arange(len(rays))
    distance = _ahead(enter[rows, face], enter[rows, face] < leave.min(axis=1))
    normal: Floats = np.zeros_like(local_rays)
    normal[rows, face] = -np.sign(local_rays[rows, face])
    return distance, _turned(normal, axes.T)


def _hit_cylinder(start: Floats, rays: Floats, solid: Solid) -> tuple[Floats, Floats]:
    """The wall and the top; the bottom stands on the floor."""
    half = solid.half_height
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


INTERSECT = {"sphere": _hit_sphere, "cube": _hit_cube, "cylinder": _hit_cylinder}


def _ahead(distance: Floats, is_hit: np.ndarray[Any, Any]) -> Floats:
    return np.where(is_hit & (distance > NEAR), distance, NEVER)


def _at(start: Floats, rays: Floats, distance: Floats) -> Floats:
    """The point on each ray, the start where nothing is hit."""
    return start + rays * np.where(distance < NEVER, distance, 0)[:, None]


def _centre(solid: Solid) -> Floats:
    return solid.centre.astype(np.float32)


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
