"""Draws the sample portrait: smooth outlines, filled in flat colours, with soft shading inside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 768
SUPERSAMPLING = 4

Point = tuple[float, float]
Outline = Sequence[Point]

BACKGROUND, HALO = "#b9cdc4", "#d3e0d8"
SKIN, SKIN_SHADE, BLUSH = "#f0c3a2", "#dca482", "#eaa58f"
HAIR, HAIR_DARK, HAIR_LIGHT = "#3d2a26", "#33221f", "#5c4238"
BLAZER, LAPEL, TOP = "#2c3e58", "#243349", "#f4ecdf"
LIP_UPPER, LIP_LOWER, LIP_DARK = "#bf675c", "#cf7d70", "#8f4740"
EYE_WHITE, IRIS, IRIS_RIM, PUPIL = "#fdf9f4", "#7a5437", "#4a3122", "#22171a"


@dataclass(frozen=True)
class Canvas:
    """A supersampled picture that is painted in coordinates of the final one."""

    image: Image.Image

    def fill(self, outline: Outline, colour: str) -> None:
        """Paints the area inside the smooth closed curve through `outline`."""
        ImageDraw.Draw(self.image).polygon(_scaled(smooth(outline)), fill=colour)

    def disc(self, centre: Point, radius: float, colour: str) -> None:
        box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
        ImageDraw.Draw(self.image).ellipse([side * SUPERSAMPLING for side in box], fill=colour)

    def mask(self, outline: Outline, blur: float = 0) -> Image.Image:
        """Returns the inside of `outline` as an 8-bit mask with edges `blur` pixels soft."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).polygon(_scaled(smooth(outline)), fill=255)
        return mask.filter(ImageFilter.GaussianBlur(blur * SUPERSAMPLING)) if blur else mask

    def shade(self, outline: Outline, colour: str, *, blur: float, inside: Outline) -> None:
        """Tints the area of `outline` softly, and only inside the shape `inside`."""
        self.image.paste(colour, mask=ImageChops.multiply(self.mask(outline, blur), self.mask(inside)))


def smooth(outline: Outline, steps: int = 16) -> Outline:
    """Returns a closed Catmull-Rom curve through `outline`, `steps` points for each side."""
    curve = []
    for index in range(len(outline)):
        before, start, end, after = (outline[(index + offset) % len(outline)] for offset in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            x, y = (
                (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
                for a, b, c, d in zip(before, start, end, after, strict=True)
            )
            curve.append((x, y))
    return curve


def mirror(points: Outline) -> Outline:
    return [(SIDE - x, y) for x, y in points]


def both(right: Outline) -> Outline:
    """Completes the right half of an outline, given from top to bottom, with its mirror image."""
    return [*right, *(point for point in mirror(right)[::-1] if point not in right)]


def oval(centre: Point, width: float, height: float) -> Outline:
    x, y, w, h = *centre, width * 0.3536, height * 0.3536
    return [
        (x, y - height / 2), (x + w, y - h), (x + width / 2, y), (x + w, y + h),
        (x, y + height / 2), (x - w, y + h), (x - width / 2, y), (x - w, y - h),
    ]  # fmt: skip


def _scaled(points: Outline) -> list[Point]:
    return [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]


FACE = both([
    (384, 160), (446, 178), (486, 236), (494, 306), (489, 372),
    (474, 424), (446, 468), (412, 494), (384, 500),
])  # fmt: skip
NECK = both([(384, 430), (430, 430), (434, 510), (446, 544), (480, 566), (452, 640), (410, 700), (384, 710)])
HAIR_BACK = both([
    (384, 108), (462, 120), (524, 182), (546, 280), (548, 380),
    (542, 460), (512, 500), (462, 500), (430, 470),
])  # fmt: skip
HAIR_LONG = [
    (334, 128), (420, 116), (496, 160), (532, 250), (528, 350), (508, 424),
    (502, 372), (494, 310), (474, 262), (428, 226), (378, 200), (346, 170),
]  # fmt: skip
HAIR_SHORT = [
    (360, 126), (296, 140), (246, 206), (236, 300), (248, 392), (260, 424),
    (266, 372), (274, 312), (288, 262), (318, 216), (344, 180), (352, 160),
]  # fmt: skip
SHINE_LONG = [(410, 146), (470, 172), (508, 236), (516, 300), (500, 236), (460, 188)]
SHINE_SHORT = [(318, 152), (278, 186), (256, 250), (254, 304), (266, 250), (292, 200)]
BODY = both([(384, 540), (460, 552), (540, 580), (624, 616), (676, 676), (704, 790), (560, 860)])
TOP_CLOTH = both([(384, 620), (440, 572), (466, 566), (480, 590), (452, 690), (400, 800)])
LAPEL_SHAPE = [
    (442, 540), (480, 556), (514, 620), (506, 690), (462, 752),
    (388, 840), (430, 736), (462, 660), (472, 596),
]  # fmt: skip

EYE = [(406, 331), (417, 318), (434, 312), (452, 316), (465, 329), (452, 339), (434, 343), (417, 340)]
LID = [(403, 333), (415, 315), (434, 307), (455, 311), (471, 325), (464, 329), (451, 318), (434, 314), (418, 319)]
CREASE = [(408, 311), (430, 299), (454, 302), (468, 314), (452, 306), (430, 303)]
BROW = [(402, 287), (424, 278), (450, 274), (477, 286), (450, 281), (424, 286), (404, 295)]
NOSE_SIDE = [(393, 338), (399, 354), (404, 384), (396, 396), (391, 376)]
NOSE_BASE = both([(384, 400), (394, 397), (405, 392), (409, 387), (406, 397), (395, 404), (384, 407)])
LIP_TOP = both([(384, 434), (394, 430), (408, 435), (424, 440), (408, 445), (384, 447)])
LIP_BOTTOM = both([(384, 445), (408, 443), (424, 440), (411, 453), (396, 459), (384, 460)])
LIP_LINE = both([(384, 444), (408, 442.5), (428, 437), (408, 445), (384, 447)])


def draw_portrait() -> Image.Image:
    """Returns the portrait: RGB, 768x768, a frontal bust with a neutral expression in even light."""
    canvas = Canvas(Image.new("RGB", (SIDE * SUPERSAMPLING,) * 2, BACKGROUND))
    canvas.image.paste(HALO, mask=canvas.mask(oval((384, 350), 560, 620), 90))
    _draw_body(canvas)
    _draw_head(canvas)
    for right in (False, True):
        _draw_eye(canvas, right=right)
    _draw_nose_and_mouth(canvas)
    return canvas.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _draw_body(canvas: Canvas) -> None:
    canvas.fill(HAIR_BACK, HAIR_DARK)
    canvas.fill(BODY, BLAZER)
    canvas.fill(TOP_CLOTH, TOP)
    canvas.fill(NECK, SKIN)
    canvas.shade(oval((384, 482), 200, 110), SKIN_SHADE, blur=7, inside=NECK)
    for lapel in (LAPEL_SHAPE, mirror(LAPEL_SHAPE)):
        canvas.fill(lapel, LAPEL)


def _draw_head(canvas: Canvas) -> None:
    canvas.fill(FACE, SKIN)
    for x in (440, SIDE - 440):
        canvas.shade(oval((x, 394), 58, 38), BLUSH, blur=15, inside=FACE)
    canvas.shade(HAIR_LONG, SKIN_SHADE, blur=8, inside=FACE)
    canvas.shade(HAIR_SHORT, SKIN_SHADE, blur=8, inside=FACE)
    for lock, shine in ((HAIR_LONG, SHINE_LONG), (HAIR_SHORT, SHINE_SHORT)):
        canvas.fill(lock, HAIR)
        canvas.shade(shine, HAIR_LIGHT, blur=4, inside=lock)


def _draw_eye(canvas: Canvas, *, right: bool) -> None:
    eye, lid, crease, brow = (part if right else mirror(part) for part in (EYE, LID, CREASE, BROW))
    x = 435.0 if right else SIDE - 435.0
    canvas.fill(eye, EYE_WHITE)
    for radius, colour in ((15.5, IRIS_RIM), (13.5, IRIS), (7.0, PUPIL)):
        canvas.shade(oval((x, 327), 2 * radius, 2 * radius), colour, blur=0, inside=eye)
    canvas.disc((x + 5, 322), 3.4, EYE_WHITE)
    canvas.fill(lid, PUPIL)
    canvas.fill(crease, SKIN_SHADE)
    canvas.fill(brow, HAIR)


def _draw_nose_and_mouth(canvas: Canvas) -> None:
    canvas.shade(NOSE_SIDE, SKIN_SHADE, blur=4, inside=FACE)
    canvas.fill(NOSE_BASE, SKIN_SHADE)
    canvas.fill(LIP_TOP, LIP_UPPER)
    canvas.fill(LIP_BOTTOM, LIP_LOWER)
    canvas.fill(LIP_LINE, LIP_DARK)
    canvas.shade(oval((384, 472), 34, 6), SKIN_SHADE, blur=3, inside=FACE)
