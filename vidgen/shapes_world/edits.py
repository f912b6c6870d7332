"""Edit triplets: a clip, an instruction, and the clip after it; nothing else changes.

In `train` every (shape, colour, motion) before and after is one of the training triples. In
`held_out` the figure that the instruction is about is, afterwards, a held-out one (for a removal:
the one that stays, for a new background or size: the figure as it is).
"""

import dataclasses
from typing import Any

import numpy as np

from vidgen.shapes_world.captions import VERBS
from vidgen.shapes_world.world import (
  BACKGROUNDS,
  COLOURS,
  MOTIONS,
  PAIR_MOTIONS,
  SHAPES,
  SIZES,
  Clip,
  Figure,
  WorldSpec,
  floor,
  is_inside,
  pick,
  sample_figure,
  stream,
  triples,
)

TASKS = ("recolour", "reshape", "resize", "background", "motion", "speed", "add", "remove")
INSTRUCTIONS = {
  "recolour": ("make the {c} {s} {c2}", "change the colour of the {s} from {c} to {c2}"),
  "reshape": ("turn the {c} {s} into a {s2}", "replace the {c} {s} by a {c} {s2}"),
  "resize": ("make the {c} {s} {z2}", "the {s} should be {z2}"),
  "background": ("make the background {b2}", "replace the {b} background by a {b2} one"),
  "motion": ("the {c} {s} should be {v2}", "change the motion: the {s} is {v2}"),
  "speed": ("make the {c} {s} {faster}", "the {s} should be {faster}"),
  "add": ("add a {c} {s} {v} in the {half} half", "put a {c} {s} {v} into the {half} half"),
  "remove": ("remove the {c} {s}", "take away the {c} {s} in the {half} half"),
}


@dataclasses.dataclass(frozen=True)
class Edit:
  """One triplet; `task` is one of TASKS."""

  task: str
  instruction: str
  before: Clip
  after: Clip


def sample_edit(spec: WorldSpec, *, seed: int, split: str = "train", index: int) -> Edit:
  """Draws edit `index`; the tasks take turns."""
  rng = stream(seed, split=split, index=index, purpose="edit")
  task = TASKS[index % len(TASKS)]
  if task in ("add", "remove"):
    before, after, about = _add_or_remove(rng, spec, task=task, split=split)
    target = about
  else:
    before, after = _change(rng, spec, task=task, split=split)
    about, target = before.figures[0], after.figures[0]
  words = {
    "c": about.colour,
    "s": about.shape,
    "v": VERBS[about.motion],
    "b": before.background,
    "half": "upper" if about.y < 0.5 else "lower",
    "c2": target.colour,
    "s2": target.shape,
    "z2": target.size,
    "v2": VERBS[target.motion],
    "b2": after.background,
    "faster": "faster" if target.speed == "fast" else "slower",
  }
  return Edit(task, pick(rng, INSTRUCTIONS[task]).format(**words), before, after)


def _change(
  rng: np.random.Generator, spec: WorldSpec, *, task: str, split: str
) -> tuple[Clip, Clip]:
  """A clip of one figure before and after a change of one of its properties."""
  background = str(pick(rng, tuple(BACKGROUNDS)))
  while True:
    shape, colour, motion = pick(rng, triples(split))
    if task == "speed" and motion == "still":
      continue
    # What must fit into the frame in both clips is drawn for the one that needs more room.
    size = {"resize": "large", "motion": "small"}.get(task)
    speed = {"speed": "fast", "motion": "slow"}.get(task) if motion != "still" else None
    after = sample_figure(
      rng, (shape, colour, motion), seconds=spec.seconds, size=size, speed=speed
    )
    if task == "resize":
      after = _resized(after, str(pick(rng, tuple(SIZES))))
    elif task == "speed":
      after = dataclasses.replace(after, speed=pick(rng, ("slow", "fast")))
    if task == "background":
      other = pick(rng, tuple(b for b in BACKGROUNDS if b != background))
      return Clip(other, (after,)), Clip(background, (after,))
    before = _undo(rng, after, task=task)
    if before.motion == "bouncing" and task == "motion":  # both begin on the floor
      after = dataclasses.replace(after, y=before.y)
    allowed = split == "held_out" or (before.shape, before.colour, before.motion) in triples(split)
    if allowed and all(is_inside(f, seconds=spec.seconds) for f in (before, after)):
      return Clip(background, (before,)), Clip(background, (after,))


def _undo(rng: np.random.Generator, after: Figure, *, task: str) -> Figure:
  """The figure as it was before: one property differs."""

  def other(options: Any, value: Any) -> Any:
    return pick(rng, tuple(o for o in options if o != value))

  if task == "recolour":
    return dataclasses.replace(after, colour=other(COLOURS, after.colour))
  if task == "reshape":
    return dataclasses.replace(after, shape=other(SHAPES, after.shape))
  if task == "resize":
    return _resized(after, other(SIZES, after.size))
  if task == "speed":
    return dataclasses.replace(after, speed=other(("slow", "fast"), after.speed))
  motion = other(MOTIONS, after.motion)
  before = dataclasses.replace(after, motion=motion, speed=None if motion == "still" else "slow")
  return dataclasses.replace(before, y=floor(after.size)) if motion == "bouncing" else before


def _resized(figure: Figure, size: str) -> Figure:
  y = floor(size) if figure.motion == "bouncing" else figure.y
  return dataclasses.replace(figure, size=size, y=y)


def _add_or_remove(
  rng: np.random.Generator, spec: WorldSpec, *, task: str, split: str
) -> tuple[Clip, Clip, Figure]:
  """The clips before and after, and the figure that comes or goes."""
  background = str(pick(rng, tuple(BACKGROUNDS)))
  allowed = tuple(t for t in triples(split) if t[2] in PAIR_MOTIONS)
  first = pick(rng, allowed)
  second = pick(rng, tuple(t for t in allowed if t[1] != first[1]))
  pair = tuple(
    sample_figure(rng, t, seconds=spec.seconds, size="small", half=h)
    for t, h in ((first, 0.0), (second, 0.5))
  )
  chosen = int(rng.integers(2))
  whole, part = Clip(background, pair), Clip(background, (pair[1 - chosen],))
  return (part, whole, pair[chosen]) if task == "add" else (whole, part, pair[chosen])
