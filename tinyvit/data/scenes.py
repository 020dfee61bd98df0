"""Generated scenes of a few shapes, with captions and questions; a seed decides everything.

A scene has two to four things in the cells of a 3 x 3 grid, each with a shape, a colour and a size. Some pairs of
colour and shape (`HELD_OUT`) never occur in the train split: a model that names such a thing has combined what it
learned about the colour and about the shape.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (39, 160, 82),
    "blue": (41, 98, 210),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
    "black": (45, 52, 54),
}
SIZES = {"small": 3.6, "big": 6.2}  # pixels from the centre to the rim
HELD_OUT = (("red", "triangle"), ("blue", "circle"), ("yellow", "square"))
GRID, CELL = 3, 16  # cells per side of a scene, pixels per side of a cell
JITTER = 1.6  # largest offset of a thing from the middle of its cell, in pixels; it keeps the thing inside the cell
TRAIN_SCENES, TEST_SCENES = 24_000, 1_000
QUESTIONS = 6  # largest number about each scene, half of them relational

COLUMNS, ROWS = ("left", "middle", "right"), ("top", "middle", "bottom")

ANSWERS = ("yes", "no", *SHAPES, *COLOURS, *SIZES, *COLUMNS, "top", "bottom", "0", "1", "2", "3", "4")
VOCABULARY = (
    *ANSWERS,
    "a an and , ? what shape color size is are the there how many thing things circles squares triangles of",
    "closest to farthest from above below same as have other in which column row",
)


@dataclass(frozen=True)
class Thing:
    """One thing of a scene; x and y are pixels from the left and from the top."""

    shape: str
    colour: str
    size: str
    cell: int
    x: float
    y: float

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


Scene = tuple[Thing, ...]  # row by row, from left to right


def draw_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """Draw a scene: one with a held-out pair if `held_out`, else one without."""
    while True:
        count = int(rng.integers(2, 5))
        cells = np.sort(rng.permutation(GRID * GRID)[:count])
        offsets = rng.uniform(-JITTER, JITTER, (count, 2))
        looks = rng.integers(0, (len(SHAPES), len(COLOURS), len(SIZES)), (count, 3))
        scene = tuple(_thing(look, cell, offset) for look, cell, offset in zip(looks, cells, offsets, strict=True))
        if any(thing.pair in HELD_OUT for thing in scene) == held_out:
            return scene


def _thing(look: NDArray[np.int64], cell: int, offset: NDArray[np.float64]) -> Thing:
    """Return a thing from the indices of its shape, colour and size, its cell, and its offset (x, y) in pixels."""
    shape, colour, size = look
    x, y = (np.array([cell % GRID, cell // GRID]) + 0.5) * CELL + offset
    return Thing(SHAPES[shape], tuple(COLOURS)[colour], tuple(SIZES)[size], int(cell), float(x), float(y))


def caption(scene: Scene) -> str:
    """Describe every thing, row by row: "a big red circle, a small blue square and a big green circle"."""
    *first, last = map(str, scene)
    return f"{', '.join(first)} and {last}"


# Splits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """The scenes of a split: those without held-out pairs, and those with one. No two have the same caption."""

    seed: int
    seen: tuple[Scene, ...]
    unseen: tuple[Scene, ...]

    @property
    def all(self) -> tuple[Scene, ...]:
        return self.seen + self.unseen


@cache
def of_split(split: str) -> Scenes:
    """Return the scenes of "train" (24,000) or "test" (1,000, and 1,000 with held-out pairs); no scene is in both."""
    test = tuple(islice(_distinct(1, held_out=False), TEST_SCENES))
    if split == "test":
        return Scenes(1, test, tuple(islice(_distinct(2, held_out=True), TEST_SCENES)))
    known = {caption(scene) for scene in test}
    fresh = (scene for scene in _distinct(0, held_out=False) if caption(scene) not in known)
    return Scenes(0, tuple(islice(fresh, TRAIN_SCENES)), ())


def _distinct(seed: int, held_out: bool) -> Iterator[Scene]:
    rng, captions = np.random.default_rng(seed), set()
    while True:
        scene = draw_scene(rng, held_out)
        if (text := caption(scene)) not in captions:
            captions.add(text)
            yield scene


# Drawing ------------------------------------------------------------------------------------------------------------


def render(scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    """Draw scenes as images (n, 3, 48, 48), with smooth edges, light from the upper left, and a pale background."""
    images = np.empty((len(scenes), 3, GRID * CELL, GRID * CELL), np.uint8)
    for start in range(0, len(scenes), 256):  # in parts, because drawing in float32 takes memory
        images[start : start + 256] = _drawn(scenes[start : start + 256])
    return images


def _drawn(scenes: Sequence[Scene]) -> NDArray[np.float32]:
    fall = np.linspace(0, 1, GRID * CELL)
    ground = 236 - 22 * (fall[:, None] + fall[None, :]) / 2
    images = np.broadcast_to(ground, (len(scenes), 3, *ground.shape)).astype(np.float32)
    things = [(i, thing) for i, scene in enumerate(scenes) for thing in scene]
    covered, lit = _coverage([thing for _, thing in things])
    for (i, thing), cover, light in zip(things, covered, lit, strict=True):
        top, left = thing.cell // GRID * CELL, thing.cell % GRID * CELL
        window = images[i, :, top : top + CELL, left : left + CELL]
        colour = np.array(COLOURS[thing.colour], np.float32)[:, None, None] * light
        window += cover * (colour - window)
    return np.rint(images).clip(0, 255)


def masks(scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    """Return which thing of its scene each pixel shows, (n, 48, 48): 0 for none, 1 for the first thing ...

    A pixel shows the thing that covers at least half of it. Drawn by the same rules as the images.
    """
    shown = np.zeros((len(scenes), GRID * CELL, GRID * CELL), np.uint8)
    things = [(i, number, thing) for i, scene in enumerate(scenes) for number, thing in enumerate(scene, 1)]
    for start in range(0, len(things), 1024):
        some = things[start : start + 1024]
        for (i, number, thing), cover in zip(some, _coverage([thing for _, _, thing in some])[0], strict=True):
            top, left = thing.cell // GRID * CELL, thing.cell % GRID * CELL
            shown[i, top : top + CELL, left : left + CELL][cover >= 0.5] = number
    return shown


_EXTENTS = {  # of each shape, in radii from its centre: left, top, right, bottom
    "circle": (-1, -1, 1, 1),
    "square": (-0.88, -0.88, 0.88, 0.88),
    "triangle": (-0.85, -0.95, 0.85, 0.75),
}


def boxes(scene: Scene) -> NDArray[np.float32]:
    """Return the smallest box around each thing, (things, 4): left, top, right and bottom edge in pixels."""
    extents = np.array([_EXTENTS[thing.shape] for thing in scene])
    radii = np.array([[SIZES[thing.size]] for thing in scene])
    return (np.array([[thing.x, thing.y] * 2 for thing in scene]) + radii * extents).astype(np.float32)


def _coverage(things: list[Thing]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the share of each pixel of its cell that a thing covers, and how light it is there, (n, 16, 16) each."""
    pixel = np.arange(CELL, dtype=np.float32) + 0.5
    radius, kind, x0, y0 = (
        np.array(values, np.float32)[:, None, None]
        for values in (
            [SIZES[t.size] for t in things],
            [SHAPES.index(t.shape) for t in things],
            [t.x % CELL for t in things],
            [t.y % CELL for t in things],
        )
    )
    x, y = pixel - x0, pixel[:, None] - y0
    circle = np.hypot(x, y) - radius
    square = np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    triangle = np.maximum(y - 0.75 * radius, (2 * np.abs(x) - y - 0.95 * radius) / 5**0.5)
    distance = np.select([kind == 0, kind == 1], [circle, square], triangle)
    light = 1 - 0.16 * (x + y) / radius
    return (0.5 - distance).clip(0, 1), light.clip(0.75, 1.2)


# Questions ----------------------------------------------------------------------------------------------------------

_CLEAR = 4  # pixels by which positions or distances must differ for a question about them


@dataclass(frozen=True)
class Question:
    """A question and its answer; a relational question compares things."""

    text: str
    answer: str
    relational: bool


def questions(scene: Scene, seed: int, number: int) -> list[Question]:
    """Draw different, unambiguous questions about a scene, which is scene `number` of the split with this seed."""
    rng = np.random.default_rng((seed, number))
    chosen: list[Question] = []
    for pool in (_about_one(scene, rng), _relational(scene, rng)):
        order = rng.permutation(len(pool))
        chosen += [pool[i] for i in order[: QUESTIONS // 2]]
    return chosen


def _about_one(scene: Scene, rng: np.random.Generator) -> list[Question]:
    asked = [
        *((f"what shape is the {t.colour} thing?", t.shape) for t in _unique(scene, "colour")),
        *((f"what size is the {t.colour} thing?", t.size) for t in _unique(scene, "colour")),
        *((f"what color is the {t.shape}?", t.colour) for t in _unique(scene, "shape")),
        *((f"in which column is the {t.colour} thing?", COLUMNS[t.cell % GRID]) for t in _unique(scene, "colour")),
        *((f"in which row is the {t.colour} thing?", ROWS[t.cell // GRID]) for t in _unique(scene, "colour")),
    ]
    shape = SHAPES[rng.integers(len(SHAPES))]
    asked.append((f"how many {shape}s are there?", str(sum(t.shape == shape for t in scene))))
    some = scene[rng.integers(len(scene))]
    other = tuple(COLOURS)[rng.integers(len(COLOURS))]
    for colour in dict.fromkeys((some.colour, other)):
        there = any(t.pair == (colour, some.shape) for t in scene)
        asked.append((f"is there a {colour} {some.shape}?", "yes" if there else "no"))
    return [Question(text, answer, False) for text, answer in asked]


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """Return the things whose value of this attribute no other thing of the scene has."""
    values = [getattr(t, attribute) for t in scene]
    return [t for t, value in zip(scene, values, strict=True) if values.count(value) == 1]


def _relational(scene: Scene, rng: np.random.Generator) -> list[Question]:
    asked: list[tuple[str, str]] = []
    named = _unique(scene, "colour")
    for t in named:
        others = sorted((o for o in scene if o is not t), key=lambda o: _distance(o, t))
        if len(others) > 1 and _distance(others[1], t) - _distance(others[0], t) > _CLEAR:
            asked.append((f"what shape is the thing closest to the {t.colour} thing?", others[0].shape))
            asked.append((f"what color is the thing closest to the {t.colour} thing?", others[0].colour))
        if len(others) > 1 and _distance(others[-1], t) - _distance(others[-2], t) > _CLEAR:
            asked.append((f"what color is the thing farthest from the {t.colour} thing?", others[-1].colour))
        same = sum(o.shape == t.shape for o in others)
        asked.append((f"how many other things have the same shape as the {t.colour} thing?", str(same)))
        for o in named:
            if o is t:
                continue
            if abs(o.x - t.x) > _CLEAR:
                asked.append((f"is the {o.colour} thing left of the {t.colour} thing?", "no" if o.x > t.x else "yes"))
            if abs(o.y - t.y) > _CLEAR:
                asked.append((f"is the {o.colour} thing above the {t.colour} thing?", "no" if o.y > t.y else "yes"))
    return [Question(text, answer, True) for text, answer in asked]


def _distance(a: Thing, b: Thing) -> float:
    return float(np.hypot(a.x - b.x, a.y - b.y))
