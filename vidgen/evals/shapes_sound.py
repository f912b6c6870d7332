"""What is heard in a ShapesWorld clip: the moments of impact, and of which shape and colour."""

import dataclasses

import numpy as np

from vidgen.shapes_world.sound import PITCHES, SAMPLE_RATE, TIMBRES, impact

STEP = 0.002  # seconds; the resolution of the loudness
RISE = 4.0  # an impact is this much louder than the moment before, in power
FLOOR = 1e-4  # power below which nothing is heard
APART = 0.2  # seconds between two impacts of one figure, at least
HEARD = 0.25  # seconds of an impact that are compared


@dataclasses.dataclass(frozen=True)
class Heard:
  """Times of impact in seconds, and what struck; shape and colour are None in silence."""

  impacts: tuple[float, ...]
  shape: str | None
  colour: str | None


def read_sound(audio: np.ndarray, *, sample_rate: int = SAMPLE_RATE) -> Heard:
  """Listens to mono sound [n] in [-1, 1] at 48 kHz.

  Raises:
    ValueError: another sample rate, or more than one channel.
  """
  if audio.ndim != 1 or sample_rate != SAMPLE_RATE:
    raise ValueError(
      f"sound of shape {audio.shape} at {sample_rate} Hz: needs [n] at {SAMPLE_RATE}"
    )
  starts = _onsets(audio)
  if not starts:
    return Heard((), None, None)
  shape, colour = _what(audio, starts)
  return Heard(tuple(start / SAMPLE_RATE for start in starts), shape, colour)


def _onsets(audio: np.ndarray) -> list[int]:
  """Samples at which the power jumps."""
  step = int(STEP * SAMPLE_RATE)
  power = (audio[: len(audio) // step * step].reshape(-1, step) ** 2).mean(axis=1)
  starts: list[int] = []
  for k in range(len(power)):
    before = power[max(k - 5, 0) : k].max() if k else 0.0
    # The rise goes on over some steps, so the power is that of the next few.
    now = power[k : k + 5].max()
    loud = power[k] > FLOOR / 4 and now > FLOOR
    if loud and now > RISE * before and (not starts or k * step - starts[-1] > APART * SAMPLE_RATE):
      starts.append(k * step)
  return starts


def _what(audio: np.ndarray, starts: list[int]) -> tuple[str, str]:
  """The shape and colour whose impact is nearest in spectrum to those heard."""
  count = int(HEARD * SAMPLE_RATE)
  parts = [np.pad(a, (0, count - len(a))) for s in starts if len(a := audio[s : s + count])]
  seen = np.mean([_spectrum(part) for part in parts], axis=0)
  names = [(s, c) for s in TIMBRES for c in PITCHES if (s == "emblem") == (c == "emblem")]
  return max(names, key=lambda name: float(seen @ _spectrum(impact(*name)[:count])))


def _spectrum(part: np.ndarray) -> np.ndarray:
  """Amplitudes by frequency, of length 1; roots, so that faint partials count too."""
  amplitude = np.sqrt(np.abs(np.fft.rfft(part)))[: len(part) // 4]
  return amplitude / max(float(np.linalg.norm(amplitude)), 1e-9)
