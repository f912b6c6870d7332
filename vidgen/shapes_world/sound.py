"""What a clip sounds like: an impact at every touch of the floor, silence otherwise.

An impact is a struck body: decaying partials, begun at once. The colour sets the pitch, the shape
the timbre, that is the ratios of the partials (harmonic for a circle, a struck bar's for a square,
those of a drum skin for a triangle, odd harmonics for a cross) and how soon they die.
"""

import functools

import numpy as np
from jaxtyping import Float

from vidgen.shapes_world.world import COLOURS, Clip, Figure

SAMPLE_RATE = 48_000
PITCHES = dict(zip(COLOURS, (220.0, 277.2, 349.2, 440.0, 554.4, 698.5), strict=True))  # Hz
PITCHES["emblem"] = 311.1
# Ratios of the partials to the pitch, and seconds until a partial has fallen to 1/e.
TIMBRES = {
  "circle": ((1.0, 2.0, 3.0, 4.0), 0.10),
  "square": ((1.0, 2.756, 5.404, 8.933), 0.07),
  "triangle": ((1.0, 1.594, 2.136, 2.653), 0.05),
  "cross": ((1.0, 3.0, 5.0, 7.0), 0.03),
  "emblem": ((1.0, 2.0, 5.0, 6.0), 0.06),
}
IMPACT_SECONDS = 0.5
LEVEL = 0.5  # peak of one impact; two at once stay within [-1, 1]


@functools.cache
def impact(shape: str, colour: str) -> Float[np.ndarray, "n"]:
  """The sound of one impact, float32 at 48 kHz, from the moment of touch."""
  ratios, decay = TIMBRES[shape]
  times = np.arange(int(IMPACT_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
  sound = sum(
    np.sin(2 * np.pi * PITCHES[colour] * ratio * times) * np.exp(-times * ratio / decay) / (k + 1)
    for k, ratio in enumerate(ratios)
  )
  fade = np.clip((IMPACT_SECONDS - times) / 0.05, 0, 1)  # so that it ends without a click
  return (LEVEL * sound / np.abs(sound).max() * fade).astype(np.float32)


def clip_sound(clip: Clip, *, seconds: float) -> Float[np.ndarray, "n"]:
  """The mono sound of a clip, float32 in [-1, 1] at 48 kHz."""
  count = round(seconds * SAMPLE_RATE)
  sound = np.zeros(count, np.float32)
  for figure in clip.figures:
    for time in figure.impacts(seconds):
      _add(sound, figure, round(time * SAMPLE_RATE))
  return sound


def _add(sound: np.ndarray, figure: Figure, start: int) -> None:
  part = impact(figure.shape, figure.colour)[: len(sound) - start]
  sound[start : start + len(part)] += part
