"""Which frames of a clip are scored: how many, at what rate, and from where in the clip."""

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np

from vidgen.errors import ConfigError
from vidgen.inputs.decode import Span, TooShort

STARTS = ("start", "centre", "random")
MOST_FRAMES = 1024  # of a clip that is read whole


@dataclasses.dataclass(frozen=True)
class ClipRule:
  """The rule by which clips are cut.

  start: the part that is taken is the first, the middle one, or one drawn by `seed` and the clip's
  name (so clips of the same name in two sets are cut alike). frames: how many, None for all. fps:
  the rate they are resampled to, by the frame on screen at each time; None takes them as they come.
  sequence_fps: the rate of clips that are folders of pictures, which no file states.
  """

  start: str = "start"
  frames: int | None = None
  fps: float | None = None
  seed: int = 0
  sequence_fps: float | None = None

  def __post_init__(self):
    if self.start not in STARTS:
      raise ConfigError(f"--clip {self.start!r}: known are {', '.join(STARTS)}")
    if self.frames is not None and not 1 <= self.frames <= MOST_FRAMES:
      raise ConfigError(f"--frames {self.frames}: must lie in 1 to {MOST_FRAMES}")
    for name in ("fps", "sequence_fps"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be positive")

  def draw(self, name: str) -> float:
    """Where in its slack the clip of this name starts, in [0, 1)."""
    if self.start == "random":
      digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
      return int.from_bytes(digest[:6], "big") / 2**48
    return 0.5 if self.start == "centre" else 0.0

  def window(self, name: str) -> "Window":
    """The frames of the clip of this name."""
    return Window(fps=self.fps or 0.0, frames=self.frames or 0, draw=self.draw(name))

  def protocol(self) -> dict[str, Any]:
    """What of it a record must hold."""
    return {
      "clip": self.start,
      "clip_seed": self.seed if self.start == "random" else None,
      "clip_frames": self.frames,
      "resampled_fps": self.fps,
    }


@dataclasses.dataclass(frozen=True)
class Window(Span):
  """A span whose `fps` may be 0, for frames as they come, and whose `frames` may be 0, for all.

  `rates` takes the clip's own frames per second, when its times are known.
  """

  rates: list[float] = dataclasses.field(default_factory=list, compare=False)

  def indices(self, times: np.ndarray, *, duration: float, tick: float) -> np.ndarray:
    """As of `Span`; where `fps` is 0, `frames` frames in a row.

    Raises:
      TooShort: the clip has fewer.
    """
    self.rates.append(len(times) / duration if 0 < duration < math.inf else 0.0)
    if self.fps:
      # A clip of t frames has t at its own rate, though its last times are rounded.
      frames = self.frames or max(1, math.floor(duration * self.fps + 0.01))
      return Span(self.fps, frames, self.draw).indices(times, duration=duration, tick=tick)
    count = self.frames or len(times)
    if count > len(times):
      raise TooShort(f"has {len(times)} frames, {count} are asked for", duration=duration)
    if count > MOST_FRAMES:
      raise TooShort(f"has {count} frames, more than are read; name --frames", duration=duration)
    slack = len(times) - count
    start = min(int(self.draw * (slack + 1)), slack)
    return np.arange(start, start + count)
