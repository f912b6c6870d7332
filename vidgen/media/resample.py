"""Band-limited resampling of audio by a rational factor, and mixing down to one channel."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from vidgen.errors import DataError
from vidgen.media.audio import Sound

RATES = (1_000, 768_000)  # accepted, per second: filters grow with the ratio of two rates
_ROWS = 4096  # windows of samples held at once
MOST_TAPS = 1 << 24  # of all phases: 128 MiB; rates in use share a factor and have far fewer


@dataclasses.dataclass(frozen=True)
class SincFilter:
  """A sinc under a Kaiser window.

  `zeros`: crossings on each side of the middle, at the lower of the two rates; `beta`: of the
  window; `rolloff`: cutoff as a share of the lower Nyquist frequency. The defaults are the
  constants of `kaiser_best` of resampy from 0.3, by which the usual FAD tools read other rates.
  """

  zeros: int = 50
  beta: float = 12.984585247040012
  rolloff: float = 0.9173473712608761

  def describe(self) -> str:
    """The filter in a line, for a protocol record."""
    return f"kaiser sinc, zeros {self.zeros}, beta {self.beta:.6g}, rolloff {self.rolloff:.6g}"


BEST = SincFilter()


def resample(
  samples: Float[np.ndarray, "n"], *, source: int, target: int, filter: SincFilter = BEST
) -> Float[np.ndarray, "m"]:
  """Samples at `source` per second, as float32 at `target`: m = floor(n * target / source).

  Zero phase: sample i is the value at time i / target. Beyond both ends is silence. Computed in
  float64.

  Raises:
    DataError: a rate outside 1 to 768 kHz, or two whose filter would take too much memory.
  """
  if source == target:
    return samples.astype(np.float32)
  up, down, reach, taps = _polyphase(source, target, filter)
  count = len(samples) * up // down
  padded = np.pad(samples.astype(np.float64), reach)
  # Sample m lies between inputs q = m * down // up and q + 1; every `up`th has the same taps.
  out = np.empty(count, np.float32)
  if not count:
    return out
  windows = sliding_window_view(padded, 2 * reach + 1)
  for phase in range(min(up, count)):
    rows = windows[phase * down // up :: down]
    wanted = len(range(phase, count, up))
    values = [rows[i : min(i + _ROWS, wanted)] for i in range(0, wanted, _ROWS)]
    out[phase::up] = np.concatenate([np.ascontiguousarray(v) @ taps[phase] for v in values])
  return out


def to_mono(sound: Sound, *, sample_rate: int, filter: SincFilter = BEST) -> np.ndarray:
  """The mean of the channels at `sample_rate`, float32 [n].

  Raises:
    DataError: a rate outside 1 to 768 kHz, or samples that are not finite.
  """
  refuse_unreadable(sound)
  mono = np.asarray(np.mean(sound.samples, axis=1, dtype=np.float64))
  return resample(mono, source=sound.sample_rate, target=sample_rate, filter=filter)


def refuse_unreadable(sound: Sound) -> None:
  """Raises DataError for a rate outside 1 to 768 kHz, or samples that are not finite."""
  _check_rate(sound.sample_rate)
  if not np.isfinite(sound.samples).all():
    raise DataError("audio samples are not finite")


def _check_rate(rate: int) -> None:
  if not RATES[0] <= rate <= RATES[1]:
    raise DataError(f"sample rate {rate} is outside {RATES[0]} to {RATES[1]} per second")


@functools.lru_cache(maxsize=8)
def _polyphase(source: int, target: int, filter: SincFilter):
  """(up, down, inputs on each side, taps [up, 2 * inputs + 1])."""
  _check_rate(source)
  _check_rate(target)
  shared = math.gcd(source, target)
  up, down = target // shared, source // shared
  scale = min(1.0, up / down)
  reach = math.ceil(filter.zeros / scale) + 1
  if up * (2 * reach + 1) > MOST_TAPS:
    raise DataError(f"sample rate {source}: too odd to be brought to {target} per second")
  fraction = (np.arange(up) * down % up / up)[:, None]
  t = (fraction - np.arange(-reach, reach + 1)) * scale
  window = np.i0(filter.beta * np.sqrt(np.maximum(0, 1 - (t / filter.zeros) ** 2)))
  taps = scale * filter.rolloff * np.sinc(filter.rolloff * t) * window / np.i0(filter.beta)
  return up, down, reach, np.where(np.abs(t) <= filter.zeros, taps, 0.0)
