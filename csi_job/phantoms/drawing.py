"""Draw one chest phantom: add up the attenuation along each ray, then expose a film.

Coordinates of the drawing: `across` from -1 (the patient's right, left on the film) to 1, `down` from 0 to 1;
`out` is the distance from the midline. Attenuation has no unit: 0 is air, about 1.7 the heart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from csi_job.radiographs.zones import UNKNOWN, ZONES

Plane = NDArray[np.floating]  # one value per pixel, [height, width]

_MAX_DRAWN_HEIGHT_PX = 400  # larger films are drawn at this height and enlarged: they are no sharper
_ZONE_EDGES = (0.10, 0.345, 0.565, 0.86)  # of the upper, middle and lower zone, downwards
_HAZE = (0.0, 0.07, 0.18, 0.32)  # by score: how dense the whole zone is,
_PATCH_DENSITY = (0.0, 0.26, 0.42, 0.66)  # how dense its patches are,
_PATCH_SHARE = (0.0, 0.30, 0.58, 0.90)  # and how much of it they cover
_LINES = (0.0, 0.05, 0.07, 0.06)  # fine lines of fluid between the lobules
_VESSEL_WIDTH, _THINNEST_VESSEL, _FORK_SHARE = 0.0105, 0.17, 0.3  # as a share of the height; of that; of the steps
_RIGHT_MARKER_SHARE, _CABLE_SHARE = 0.5, 0.3
_BODY_DOWN = (0, 0.03, 0.055, 0.08, 0.11, 0.15, 0.22, 0.6, 1)  # half the width of the body at these heights
_BODY_WIDTH = (0.25, 0.29, 0.38, 0.60, 0.86, 1.02, 1.12, 1.03, 0.98)
_COVER_ATTENUATION = 1.0  # what lies over a zone that cannot be graded


@dataclass(frozen=True)
class Body:
    """What distinguishes one patient's chest from another's, as factors and shifts of the drawing's lengths."""

    chest_width: float
    heart_width: float
    apex: float
    right_dome: float
    left_dome: float
    rib_spacing: float
    rib_phase: float
    thickness: float
    clavicle_slope: float

    @staticmethod
    def sample(random: np.random.Generator) -> "Body":
        """Sample a patient."""
        dome = random.uniform(0.735, 0.79)
        return Body(
            chest_width=random.uniform(0.70, 0.82),
            heart_width=random.uniform(0.24, 0.36),
            apex=random.uniform(0.085, 0.12),
            right_dome=dome,
            left_dome=dome + random.uniform(0.01, 0.045),
            rib_spacing=random.uniform(0.075, 0.09),
            rib_phase=random.uniform(0, 1),
            thickness=random.uniform(0.85, 1.2),
            clavicle_slope=random.uniform(0.03, 0.10),
        )


def draw_chest(body: Body, scores: Sequence[int], size_px: tuple[int, int], random: np.random.Generator) -> Plane:
    """Draw a frontal chest radiograph, float32 `[height, width]` from 0 (black) to 1.

    A zone with the score 4 is covered with an object, so that it cannot be graded; `size_px` is width and height.
    """
    height_px = min(_MAX_DRAWN_HEIGHT_PX, size_px[1])
    view = _View(body, (max(32, round(height_px * size_px[0] / size_px[1])), height_px), random)
    attenuation_HW = view.body_wall() + view.mediastinum() + view.bones()
    attenuation_HW -= 1.02 * view.lungs_HW * (1 - 0.25 * view.texture(7))
    attenuation_HW += view.vessels() + view.opacities(scores)
    attenuation_HW = np.maximum(attenuation_HW, 0.02) * view.inside_HW + view.objects(scores)
    # On film: exposure, contrast, the blur of the enlargement, quantum noise.
    exposure, gamma = random.uniform(0.85, 1.2), random.uniform(0.85, 1.3)
    film_HW = (1 - np.exp(-exposure * attenuation_HW.astype(np.float32))) ** gamma
    film_HW = np.asarray(Image.fromarray(film_HW).resize(size_px, Image.Resampling.BICUBIC))
    noise_HW = random.standard_normal(film_HW.shape, dtype=np.float32) * random.uniform(0.006, 0.022)
    film_HW = (film_HW + noise_HW * (0.6 + film_HW)) * random.uniform(0.85, 1.0)
    return film_HW.clip(0, 1)


class _View:
    """One patient in one pose, with the shapes that several organs share."""

    def __init__(self, body: Body, size_px: tuple[int, int], random: np.random.Generator) -> None:
        self.body, self.size_px, self.random = body, size_px, random
        self.across, self.down = _coordinates(size_px, random)
        self.out = np.abs(self.across)
        self.is_left = self.across > 0  # the patient's left lies on the right
        body_width = np.interp(self.down, _BODY_DOWN, _BODY_WIDTH)
        self.inside_HW = _step(body_width.astype(np.float32) - self.out, 0.012)
        rise = np.clip((0.80 - self.down) / (0.80 - self.body.apex), 0, 1)
        wall = 0.34 + (self.body.chest_width - 0.34) * (1 - rise**2.1) ** 0.7  # a bullet, its point the apex
        self.wall = wall - 0.10 * np.maximum(self.down - 0.78, 0)
        top = np.where(self.is_left, self.body.left_dome, self.body.right_dome)
        dome = top + 0.30 * np.maximum(np.abs(self.out - 0.34) - 0.02, 0) ** 2 / 0.45
        self.dome = dome + 0.10 * np.maximum(self.out / self.body.chest_width - 0.72, 0) ** 1.5 * 4
        self.heart_HW = self._heart()
        self.apex = self.body.apex + 0.55 * (self.out - 0.33) ** 2 + 0.5 * np.maximum(0.2 - self.out, 0)
        sides = _step(self.wall - self.out, 0.02) * _step(self.out - 0.12, 0.045)
        lungs_HW = sides * _step(self.down - self.apex, 0.02) * _step(self.dome - self.down, 0.009)
        self.lungs_HW = lungs_HW * (1 - 0.8 * self.heart_HW)  # little of them shows behind heart and spine

    def texture(self, num_cells: int) -> Plane:
        """Return smooth noise from 0 to 1 with this many cells from top to bottom."""
        cells = self.random.random((num_cells + 2, num_cells + 2), dtype=np.float32)
        return np.asarray(Image.fromarray(cells).resize(self.size_px, Image.Resampling.BICUBIC)).clip(0, 1)

    def body_wall(self) -> Plane:
        """Soft tissue of chest, shoulders and, below the diaphragm, the abdomen with its gas."""
        thickness = self.body.thickness * (
            1.22 - 0.30 * np.minimum(self.out, 1.1) ** 2 + 0.25 * np.maximum(self.down - 0.55, 0)
        )
        abdomen = 0.42 * _step(self.down - self.dome, 0.012)
        gas_at = (self.random.uniform(0.28, 0.45), self.body.left_dome + self.random.uniform(0.06, 0.09))
        gas = self._blob(gas_at, self.random.uniform(0.08, 0.16), self.random.uniform(0.025, 0.05))
        bowel = 0.22 * self.texture(13) * self.texture(7) * _step(self.down - self.dome - 0.08, 0.03)
        breasts = sum(0.10 * self._blob((side * 0.42, 0.74), 0.33, 0.16) for side in (-1, 1)) * self.random.uniform(
            0, 1.4
        )
        return thickness + abdomen - 0.42 * gas - bowel + breasts + 0.07 * (self.texture(9) - 0.5)

    def mediastinum(self) -> Plane:
        """Heart, great vessels, windpipe and hila."""
        shadow = 0.15 + 0.025 * np.sin(9 * self.down) + 0.05 * np.maximum(self.down - 0.4, 0)
        vessels = 0.26 * _step(shadow - self.out, 0.05)
        knob = 0.30 * self._blob((0.145, 0.325), 0.085, 0.055, edge=0.2)
        windpipe = 0.20 * _step(0.045 - np.abs(self.across - 0.01), 0.02) * _step(0.38 - self.down, 0.03)
        hila = sum(0.24 * self._blob((side * 0.225, 0.445 - 0.012 * side), 0.12, 0.09, edge=0.9) for side in (-1, 1))
        return np.maximum(vessels, 0.40 * self.heart_HW) + knob - windpipe + hila

    def bones(self) -> Plane:
        """Spine, ribs behind and in front, collarbones, shoulder blades and the heads of the arms."""
        vertebrae = 0.5 + 0.5 * np.cos(2 * np.pi * self.down / (0.72 * self.body.rib_spacing))
        spine = (0.16 + 0.06 * vertebrae) * np.exp(-((self.out / 0.105) ** 4))
        cage = _step(self.wall + 0.02 - self.out, 0.02) * _step(self.down - self.apex + 0.02, 0.02)
        cage *= 1 - 0.75 * _step(self.down - self.dome, 0.02)  # the abdomen outshines them
        behind = self._ribs(-0.10 * self.out + 0.34 * self.out**2, 0.19, 1.0) * _step(self.out - 0.08, 0.04)
        in_front = self._ribs(-0.30 * self.out - 0.12 * self.out**2, 0.23, 1.35) * _step(self.out - 0.40, 0.12)
        collar_at = 0.165 - self.body.clavicle_slope * self.out + 0.014 * np.sin(8 * self.out)
        collar = self._bar(self.down - collar_at, 0.0125) * _step(self.out - 0.09, 0.02) * _step(0.80 - self.out, 0.03)
        blade = _step(0.10 - np.abs(self.out - 0.86 + 0.35 * (self.down - 0.25)), 0.05)
        blade *= _step(self.down - 0.15, 0.06) * _step(0.42 - self.down, 0.06)
        arm = sum(self._blob((side * 1.0, 0.155), 0.13, 0.075, edge=0.10) for side in (-1, 1))
        ribs = cage * (0.10 * behind + 0.045 * in_front)
        return spine + ribs + 0.15 * collar + 0.08 * blade + 0.18 * arm

    def vessels(self) -> Plane:
        """Branching vessels that thin out from the hila."""
        canvas = Image.new("L", self.size_px)
        pen = ImageDraw.Draw(canvas)
        for side in (-1, 1):
            for angle in self.random.uniform(-1.35, 1.35, 13):
                self._branch(pen, (side * 0.19, 0.455), side, float(angle), 1.0)
        drawn = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.9)), dtype=np.float32) / 255
        return 0.30 * drawn * self.lungs_HW

    def opacities(self, scores: Sequence[int]) -> Plane:
        """Fluid in the lungs: haze, patches and fine lines, denser and larger with the score of the zone."""
        clouds = 0.36 * self.texture(8) + 0.32 * self.texture(21) + 0.32 * self.texture(47)
        cover = 1 / (1 + np.exp(-1.7 * (clouds - clouds.mean()) / clouds.std()))  # about evenly from 0 to 1
        lines = np.exp(-((14 * (self.texture(60) - 0.5)) ** 2))
        wavy = self.down + 0.09 * (self.texture(12) - 0.5)  # zones have no straight edges
        total_HW = np.zeros_like(self.down)
        for zone, score in enumerate(scores):
            if 0 < score < UNKNOWN:
                patches = _step(cover - 1 + _PATCH_SHARE[score], 0.42)
                density = self.random.uniform(0.93, 1.07) * (_HAZE[score] + _PATCH_DENSITY[score] * patches)
                is_left, top, bottom = _place(zone)
                zone_HW = _step(wavy - top, 0.035) * _step(bottom - wavy, 0.035)
                total_HW += zone_HW * (self.is_left == is_left) * (density + _LINES[score] * lines)
        return total_HW * (0.85 + 0.3 * self.texture(25)) * self.lungs_HW

    def objects(self, scores: Sequence[int]) -> Plane:
        """Side marker, cables, and something that covers each zone that cannot be graded."""
        canvas = Image.new("L", self.size_px)
        pen = ImageDraw.Draw(canvas)
        width, height = self.size_px
        letter, at = ("R", 0.07) if self.random.random() < _RIGHT_MARKER_SHARE else ("L", 0.89)
        pen.text((at * width, 0.05 * height), letter, fill=200, font=ImageFont.load_default(round(0.05 * height)))
        if self.random.random() < _CABLE_SHARE:
            self._cable(pen)
        marks = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32) / 255
        for zone, score in enumerate(scores):
            if score == UNKNOWN:
                marks = np.maximum(marks, self._cover(zone))
        return _COVER_ATTENUATION * marks

    def _heart(self) -> Plane:
        """Return the left heart, which leans to the patient's left and rests on the diaphragm, and the right atrium."""
        along = (self.across - 0.12) + 1.10 * (self.down - 0.66)
        upright = (self.down - 0.66) - 0.42 * (self.across - 0.12)
        left = _step(1 - np.sqrt((along / (1.25 * self.body.heart_width)) ** 2 + (upright / 0.155) ** 2), 0.10)
        waist = self._blob((0.06, 0.47), 0.20, 0.16, edge=0.25)
        return np.maximum(np.maximum(left, waist), self._blob((-0.08, 0.655), 0.17, 0.155, edge=0.14))

    def _ribs(self, bend: Plane, half_width: float, widening: float) -> Plane:
        """Return bands that follow a bend, with the brighter rims of compact bone."""
        place = np.abs((self.down - bend) / (widening * self.body.rib_spacing) + self.body.rib_phase) % 1 - 0.5
        rim = np.exp(-(((np.abs(place) - half_width) / 0.055) ** 2))
        return 0.75 * _step(half_width - np.abs(place), 0.03) + 0.45 * rim

    def _blob(self, at: tuple[float, float], half_width: float, half_height: float, edge: float = 0.3) -> Plane:
        squared = ((self.across - at[0]) / half_width) ** 2 + ((self.down - at[1]) / half_height) ** 2
        return _step(1 - np.sqrt(squared), edge)

    def _bar(self, distance: Plane, half_width: float) -> Plane:
        rim = np.exp(-(((np.abs(distance) - half_width) / 0.004) ** 2))
        return 0.8 * _step(half_width - np.abs(distance), 0.003) + 0.4 * rim

    def _cover(self, zone: int) -> Plane:
        is_left, top, bottom = _place(zone)
        centre = (0.42 if is_left else -0.42, (top + bottom) / 2 + 0.01)
        turn = self.random.uniform(-0.25, 0.25)
        along = ((self.across - centre[0]) + turn * (self.down - centre[1])) / 0.27
        upright = ((self.down - centre[1]) - 0.5 * turn * (self.across - centre[0])) / 0.095
        return 0.9 * _step(1 - (along**4 + upright**4) ** 0.25, 0.05)

    def _branch(
        self, pen: ImageDraw.ImageDraw, start: tuple[float, float], side: int, angle: float, thickness: float
    ) -> None:
        """Draw one vessel as short lines that wander, thin out and fork."""
        across, down = start
        while thickness > _THINNEST_VESSEL:
            step = self.random.uniform(0.025, 0.045)
            angle += float(self.random.normal(0, 0.16))
            further = (across + side * step * 1.2 * np.cos(angle), down + step * np.sin(angle))
            width_px = max(1, round(_VESSEL_WIDTH * thickness * self.size_px[1]))
            pen.line(
                [self._pixel(across, down), self._pixel(*further)], fill=round(50 + 160 * thickness), width=width_px
            )
            across, down = further
            thickness *= 0.84
            if self.random.random() < _FORK_SHARE:
                fork = angle + float(self.random.choice([-0.6, 0.6]))
                self._branch(pen, (across, down), side, fork, 0.72 * thickness)

    def _cable(self, pen: ImageDraw.ImageDraw) -> None:
        start, end = self.random.uniform(0.2, 0.8, 2), self.random.uniform(0.3, 0.9, 2)
        along = np.linspace(0, 1, 24)[:, None]
        sag = np.array([0.10, 0.12]) * np.sin(np.pi * along) * self.random.uniform(-1, 1)
        points = ((1 - along) * start + along * end + sag) * self.size_px
        pen.line([tuple(point) for point in points], fill=150, width=2)
        at_x, at_y = points[-1]
        pen.ellipse([at_x - 6, at_y - 6, at_x + 6, at_y + 6], fill=170)

    def _pixel(self, across: float, down: float) -> tuple[float, float]:
        width, height = self.size_px
        return ((across + 1) / 2 * width, down * height)


def _place(zone: int) -> tuple[bool, float, float]:
    """Return whether a zone is in the patient's left lung, and its upper and lower edge."""
    side, level = ZONES[zone].split("_")
    top = ("sup", "mid", "inf").index(level)
    return side == "left", _ZONE_EDGES[top], _ZONE_EDGES[top + 1]


def _coordinates(size_px: tuple[int, int], random: np.random.Generator) -> tuple[Plane, Plane]:
    """Return across and down of each pixel for a slightly turned, moved and scaled patient."""
    width, height = size_px
    across, down = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32))
    turn, scale = random.normal(0, 0.03), random.uniform(0.93, 1.07)
    shift = random.normal(0, (0.035, 0.018))
    turned_across = (across + shift[0] + 2 * turn * (down - 0.5)) * scale
    turned_down = (down - 0.5 + shift[1] - 0.5 * turn * across) * scale + 0.5
    return turned_across.astype(np.float32), turned_down.astype(np.float32)


def _step(distance: Plane, softness: float) -> Plane:
    """Return 0 outside and 1 inside, with an edge as soft as given."""
    place = np.clip(distance / softness, -1, 1)
    return 0.5 + place * (0.75 - 0.25 * place * place)
