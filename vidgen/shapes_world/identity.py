"""Identities: a person, for whom an emblem stands, in several clips and in one portrait."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from vidgen.shapes_world import emblem
from vidgen.shapes_world.render import background
from vidgen.shapes_world.world import (
  BACKGROUNDS,
  MOTIONS,
  Clip,
  WorldSpec,
  sample_figure,
  stream,
)

CLIPS_PER_PERSON = 4
PORTRAIT_SIZE = 0.8  # side of the emblem in a portrait


def sample_person(
  spec: WorldSpec, *, seed: int, split: str = "train", index: int
) -> tuple[int, Clip]:
  """The emblem of person `index // CLIPS_PER_PERSON`, and one clip of it.

  The clips of a person differ in motion and in background. Persons of the two splits differ.
  """
  number, turn = divmod(index, CLIPS_PER_PERSON)
  rng = stream(seed, split=split, index=number, purpose="identity")
  person = emblem.sample_emblem(rng, split=split)
  motion = MOTIONS[rng.permutation(len(MOTIONS))[turn]]
  places = rng.permutation(len(BACKGROUNDS))
  rng = stream(seed, split=split, index=index, purpose="clip")
  figure = sample_figure(rng, ("square", "red", motion), seconds=spec.seconds, size="large")
  figure = dataclasses.replace(figure, shape="emblem", colour="emblem", emblem=person)
  return person, Clip(tuple(BACKGROUNDS)[places[turn]], (figure,))


def portrait(person: int, *, side: int) -> UInt8[np.ndarray, "h w 3"]:
  """The emblem alone, large, in the middle of a gray square."""
  picture = background("gray", height=side, width=side).copy()
  at = np.arange(side, dtype=np.float32) + np.float32(0.5 - side / 2)
  share, colour = emblem.draw(person, at[None, :], at[:, None], PORTRAIT_SIZE * side / 2)
  picture += share[..., None] * (colour - picture)
  return np.rint(picture).astype(np.uint8)
