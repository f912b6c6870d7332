"""What may happen in ShapesWorld, and the draw of one clip from (seed, split, index).

Lengths are parts of the frame's shorter side, positions lie in the unit square (x to the right, y
down), times are seconds. A figure is described by its centre at time 0; where it is later follows
from its motion alone. `(shape, colour, motion)` triples are split: those of `held_out` never occur
in `train`, yet each shape, each colour and each motion occurs in both.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
  "red": (230, 25, 25),
  "green": (25, 190, 50),
  "blue": (30, 80, 250),
  "yellow": (250, 220, 20),
  "purple": (160, 40, 200),
  "cyan": (20, 215, 225),
}
BACKGROUNDS = {  # the two tones of the horizontal stripes, from the top; equal where there are none
  "black": ((0, 0, 0), (0, 0, 0)),
  "white": ((255, 255, 255), (255, 255, 255)),
  "gray": ((128, 128, 128), (128, 128, 128)),
  "navy": ((15, 20, 80), (15, 20, 80)),
  "striped": ((176, 176, 176), (80, 80, 80)),
}
STRIPES = 8
MOTIONS = ("still", "left", "right", "up", "down", "bouncing")
PAIR_MOTIONS = ("still", "left", "right")  # of two figures, each in its own half of the frame
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
SIZES = {"small": 0.42, "large": 0.58}  # side of the box around the shape
SPEEDS = {"slow": 0.095, "fast": 0.19}  # per second
HOPS = {"slow": 1.0, "fast": 1.5}  # bounces per second
HOP_HEIGHT = 0.36
MARGIN = 0.01  # kept free along the border of the frame
SPLITS = ("train", "held_out")
# What a random stream is for; a stream is named by (seed, split, index, purpose).
PURPOSES = ("clip", "caption", "sound", "edit", "identity", "image", "prompt")


@dataclasses.dataclass(frozen=True)
class WorldSpec:
  """The rendering of a world and its share of clips with two figures.

  `caption_lengths` names the groups of caption templates in use: "short", "medium", "long".
  """

  height: int = 64
  width: int = 64
  frames: int = 16
  fps: float = 8.0
  two_objects: float = 0.25
  caption_lengths: tuple[str, ...] = ("short", "medium", "long")

  def __post_init__(self):
    if min(self.height, self.width) < 16 or self.height % 2 or self.width % 2:
      raise ValueError(f"frame {self.height}x{self.width}: sides must be even and at least 16")
    if self.frames < 1 or self.fps <= 0:
      raise ValueError(f"{self.frames} frames at {self.fps} fps: both must be positive")
    if self.seconds > 2.5:
      raise ValueError(
        f"{self.seconds} s is too long: figures would leave the frame (2.5 s at most)"
      )
    if not 0 <= self.two_objects <= 1:
      raise ValueError(f"two_objects is a probability, got {self.two_objects}")
    unknown = set(self.caption_lengths) - {"short", "medium", "long"}
    if unknown or not self.caption_lengths:
      raise ValueError(f"caption_lengths {self.caption_lengths}: known are short, medium, long")

  @property
  def seconds(self) -> float:
    """Length of a clip."""
    return self.frames / self.fps


@dataclasses.dataclass(frozen=True)
class Figure:
  """One object. `x`, `y`: its centre at time 0 (bouncing: `y` when on the floor).

  `speed` is "slow" or "fast", and None if and only if the figure is still. `phase` in [0, 1): how
  much of a hop is over at time 0. `emblem` replaces shape and colour by a drawing (`identity`).
  """

  shape: str
  colour: str
  motion: str
  size: str
  speed: str | None
  x: float
  y: float
  phase: float = 0.0
  emblem: int | None = None

  def __post_init__(self):
    if (self.speed is None) != (self.motion == "still"):
      raise ValueError(f"motion {self.motion!r} with speed {self.speed!r}")

  def positions(self, times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t 2"]:
    """Centres (x, y) at `times` in seconds."""
    x, y = np.full_like(times, self.x), np.full_like(times, self.y)
    if self.speed is not None and self.motion == "bouncing":
      y = y - HOP_HEIGHT * np.abs(np.sin(np.pi * (HOPS[self.speed] * times + self.phase)))
    elif self.speed is not None:
      dx, dy = DIRECTIONS[self.motion]
      x, y = x + dx * SPEEDS[self.speed] * times, y + dy * SPEEDS[self.speed] * times
    return np.stack([x, y], axis=-1)

  def impacts(self, seconds: float) -> tuple[float, ...]:
    """Times in [0, seconds) at which the figure touches the floor."""
    if self.speed is None or self.motion != "bouncing":
      return ()
    hops = HOPS[self.speed]
    count = int(np.ceil(seconds * hops + self.phase))
    return tuple(t for k in range(count + 1) if 0 <= (t := (k - self.phase) / hops) < seconds)


@dataclasses.dataclass(frozen=True)
class Clip:
  """A background and one or two figures, the upper one first."""

  background: str
  figures: tuple[Figure, ...]


def is_held_out(shape: str, colour: str, motion: str) -> bool:
  """Whether this combination is kept out of training."""
  s, c, m = SHAPES.index(shape), tuple(COLOURS).index(colour), MOTIONS.index(motion)
  return (s + 2 * c + 3 * m) % 8 == 0


@functools.cache
def triples(split: str) -> tuple[tuple[str, str, str], ...]:
  """All (shape, colour, motion) of a split, in a fixed order."""
  held = SPLITS.index(split) == 1
  everything = ((s, c, m) for m in MOTIONS for s in SHAPES for c in COLOURS)
  return tuple(t for t in everything if is_held_out(*t) == held)


def stream(seed: int, *, split: str, index: int, purpose: str) -> np.random.Generator:
  """The random stream of one sample for one purpose; independent of every other."""
  names = (seed, SPLITS.index(split), index, PURPOSES.index(purpose))
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(names)))


def sample_clip(
  spec: WorldSpec, *, seed: int, split: str = "train", index: int, purpose: str = "clip"
) -> Clip:
  """Draws clip `index` of a split: a function of its arguments alone, whatever was drawn before."""
  rng = stream(seed, split=split, index=index, purpose=purpose)
  background = pick(rng, tuple(BACKGROUNDS))
  if rng.random() >= spec.two_objects:
    triple = pick(rng, triples(split))
    return Clip(background, (sample_figure(rng, triple, seconds=spec.seconds),))
  allowed = tuple(t for t in triples(split) if t[2] in PAIR_MOTIONS)
  first = pick(rng, allowed)
  second = pick(rng, tuple(t for t in allowed if t[1] != first[1]))
  halves = ((first, 0.0), (second, 0.5))
  return Clip(
    background,
    tuple(sample_figure(rng, t, seconds=spec.seconds, size="small", half=h) for t, h in halves),
  )


def sample_figure(
  rng: np.random.Generator,
  triple: tuple[str, str, str],
  *,
  seconds: float,
  size: str | None = None,
  speed: str | None = None,
  half: float | None = None,
) -> Figure:
  """Draws what the triple leaves open, so that the figure stays inside the frame.

  `half` (0 or 0.5) keeps it within that half of the height.
  """
  shape, colour, motion = triple
  size = size or str(pick(rng, tuple(SIZES)))
  speed = None if motion == "still" else speed or str(pick(rng, tuple(SPEEDS)))
  radius = SIZES[size] / 2 + MARGIN
  left, right, top, bottom = radius, 1 - radius, radius, 1 - radius
  if half is not None:
    top, bottom = half + radius, half + 0.5 - radius
  phase = 0.0
  if motion == "bouncing":
    top = bottom = floor(size)
    phase = float(rng.random())
  elif speed is not None:
    dx, dy = (direction * SPEEDS[speed] * seconds for direction in DIRECTIONS[motion])
    left, right = left - min(dx, 0.0), right - max(dx, 0.0)
    top, bottom = top - min(dy, 0.0), bottom - max(dy, 0.0)
  x, y = float(rng.uniform(left, right)), float(rng.uniform(top, bottom))
  return Figure(shape, colour, motion, size, speed, x, y, phase)


def attributes(clip: Clip) -> dict[str, Any]:
  """The facts of a clip as plain JSON: those of the first figure, "second" where there is one."""
  names = ("shape", "colour", "motion", "size", "speed")
  facts = [{name: getattr(figure, name) for name in names} for figure in clip.figures]
  more = {"second": facts[1]} if len(facts) == 2 else {}
  return {**facts[0], "background": clip.background, "count": len(facts), **more}


def floor(size: str) -> float:
  """The height of a bouncing figure's centre when it touches the floor."""
  return 1 - SIZES[size] / 2 - MARGIN


def is_inside(figure: Figure, *, seconds: float) -> bool:
  """Whether a figure stays in the frame, and, where it bounces, does so on the floor."""
  centres, radius = figure.positions(np.linspace(0, seconds, 65)), SIZES[figure.size] / 2
  grounded = figure.motion != "bouncing" or abs(figure.y - floor(figure.size)) < 1e-9
  return grounded and bool((centres >= radius).all() and (centres <= 1 - radius).all())


def pick(rng: np.random.Generator, options: tuple) -> Any:
  """One of the options, each as likely."""
  return options[int(rng.integers(len(options)))]
