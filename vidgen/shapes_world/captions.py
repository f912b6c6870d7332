"""Captions: templates from short to long. All name shape, colour, motion and background.

The medium ones also name the size, the long ones size and speed. A caption of one figure has at
most 96 bytes, of two 160.
"""

import dataclasses
from typing import Any

import numpy as np

from vidgen.shapes_world.world import Clip, Figure, WorldSpec, attributes, stream

# {c} colour, {s} shape, {v} moving, {z} size, {a} adverb with a space before it, {b} background
TEMPLATES = {
  "short": (
    "{c} {s} {v} on {b}",
    "a {c} {s} {v} on {b}",
  ),
  "medium": (
    "a {z} {c} {s} {v} on a {b} background",
    "a {b} background with a {z} {c} {s} {v}",
  ),
  "long": (
    "a {z} {c} {s} is {v}{a} in front of a {b} background",
    "in this video a {z} {c} {s} is {v}{a}, the background is {b}",
  ),
}
PAIR_TEMPLATES = {
  "short": ("{c} {s} {v} above {c2} {s2} {v2} on {b}",),
  "medium": ("a {c} {s} {v} above a {c2} {s2} {v2} on a {b} background",),
  "long": (
    "a {c} {s} is {v}{a} in the upper half and a {c2} {s2} is {v2}{a2} in the lower half,"
    " the background is {b}",
  ),
}
# Of the other subsets. An image has one template for one figure and one for two.
IMAGE_TEMPLATES = (
  "a {z} {c} {s} on a {b} background",
  "a {c} {s} above a {c2} {s2} on a {b} background",
)
SOUND_TEMPLATE = "the sound of a {c} {s} bouncing{a}"
PERSON_TEMPLATES = (
  "the person {v}{a} on a {b} background",
  "the person is {v}{a}, the background is {b}",
)
STATED = {"short": (), "medium": ("size",), "long": ("size", "speed")}
PAIR_STATED = {"short": (), "medium": (), "long": ("speed",)}
VERBS = {
  "still": "standing still",
  "left": "moving left",
  "right": "moving right",
  "up": "moving up",
  "down": "moving down",
  "bouncing": "bouncing",
}
ADVERBS = {None: "", "slow": " slowly", "fast": " fast"}


@dataclasses.dataclass(frozen=True)
class Caption:
  """A text, and the attributes of the clip with None for what the text leaves open."""

  text: str
  attributes: dict[str, Any]


def caption_clip(
  clip: Clip, spec: WorldSpec, *, seed: int, split: str = "train", index: int
) -> Caption:
  """Words clip `index` with one of the templates that `spec` allows."""
  return draw_caption(stream(seed, split=split, index=index, purpose="caption"), clip, spec)


def draw_caption(rng: np.random.Generator, clip: Clip, spec: WorldSpec) -> Caption:
  """Words a clip with a template drawn from those that `spec` allows."""
  length = spec.caption_lengths[int(rng.integers(len(spec.caption_lengths)))]
  pair = len(clip.figures) == 2
  templates = (PAIR_TEMPLATES if pair else TEMPLATES)[length]
  return word(clip, templates[int(rng.integers(len(templates)))], stated=stated(length, pair=pair))


def describe(clip: Clip) -> str:
  """A plain caption, of middle length, of a clip."""
  templates = (PAIR_TEMPLATES if len(clip.figures) == 2 else TEMPLATES)["medium"]
  return word(clip, templates[0], stated=()).text


def stated(length: str, *, pair: bool) -> tuple[str, ...]:
  """Which of "size" and "speed" the templates of this length name."""
  return (PAIR_STATED if pair else STATED)[length]


def word(clip: Clip, template: str, *, stated: tuple[str, ...]) -> Caption:
  """Fills one template; `stated` says which of "size" and "speed" it names."""
  words = {"b": clip.background, **_words(clip.figures[0])}
  if len(clip.figures) == 2:
    words |= {f"{key}2": value for key, value in _words(clip.figures[1]).items()}
  facts = attributes(clip)
  for group in (facts, facts.get("second", {})):
    group |= {name: None for name in ("size", "speed") if name in group and name not in stated}
  return Caption(template.format(**words), facts)


def _words(figure: Figure) -> dict[str, str]:
  return {
    "c": figure.colour,
    "s": figure.shape,
    "v": VERBS[figure.motion],
    "z": figure.size,
    "a": ADVERBS[figure.speed],
  }
