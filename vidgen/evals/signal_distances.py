"""Distances between two sounds of the same length, and loudness: no network, float64, one channel
unless said. They are for pairs that should agree sample by sample, such as a codec's output.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from vidgen.errors import DataError
from vidgen.nn.spectrogram import hann

# FFT, hop and window of each resolution: those of Parallel WaveGAN and auraloss.
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))


def si_sdr(
  real: Float[np.ndarray, "n"],
  estimate: Float[np.ndarray, "m"],
  *,
  mean: Literal["kept", "removed"] = "kept",
) -> float:
  """Scale-invariant signal-to-distortion ratio in dB; infinite where only the gain differs.

  10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2 (Le Roux et al. 2019, "SDR - half-baked or
  well done?").

  Raises:
    DataError: either sound is silent, so the ratio is undefined.
  """
  s, e = _same_length(real, estimate)
  if mean == "removed":
    s, e = s - s.mean(), e - e.mean()
  if not s.any() or not e.any():
    raise DataError("SI-SDR of a silent sound is undefined")
  target = np.dot(e, s) / np.dot(s, s) * s
  noise = float(np.sum(np.square(target - e)))
  power = float(np.sum(np.square(target)))
  if noise == 0:
    return math.inf
  return 10 * math.log10(power / noise) if power else -math.inf


def multi_resolution_stft(
  real: Float[np.ndarray, "n"],
  estimate: Float[np.ndarray, "m"],
  *,
  resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS,
) -> float:
  """Spectral convergence + mean |log magnitude difference|, averaged over resolutions (fft, hop,
  window); 0 for equal sounds (Parallel WaveGAN, section 3; auraloss's default).
  """
  s, e = _same_length(real, estimate)
  total = 0.0
  for fft, hop, window in resolutions:
    a, b = (np.sqrt(np.maximum(_power(x, fft, hop, window), 1e-8)) for x in (s, e))
    total += float(np.linalg.norm(a - b) / np.linalg.norm(a))
    total += float(np.mean(np.abs(np.log(a) - np.log(b))))
  return total / len(resolutions)


def log_spectral_distance(
  real: Float[np.ndarray, "n"],
  estimate: Float[np.ndarray, "m"],
  *,
  fft: int = 2048,
  hop: int = 512,
  floor: float = 1e-10,
) -> float:
  """Mean over frames of the root mean square over frequencies of the power ratio in dB; power is
  at least `floor`.
  """
  s, e = _same_length(real, estimate)
  a, b = (10 * np.log10(np.maximum(_power(x, fft, hop, fft), floor)) for x in (s, e))
  return float(np.mean(np.sqrt(np.mean(np.square(a - b), axis=1))))


def loudness(samples: Float[np.ndarray, "n c"], *, sample_rate: int) -> float:
  """Integrated loudness in LUFS of one to three channels of equal weight (ITU-R BS.1770-4).

  Blocks of 400 ms every 100 ms; gated at -70 LUFS and then at 10 LU below the mean of what is left.
  -infinity where nothing passes.

  Raises:
    DataError: shorter than a block, or more channels (whose weights depend on their places).
  """
  n, channels = samples.shape
  block, hop = round(0.4 * sample_rate), 0.1 * sample_rate
  if n < block or not 1 <= channels <= 3:
    raise DataError(f"loudness of {n} samples of {channels} channels: at least 0.4 s of 1 to 3")
  heard = _weighted(samples.astype(np.float64), k_weighting(sample_rate), sample_rate)
  squares = np.concatenate([np.zeros((1, channels)), np.cumsum(np.square(heard), axis=0)])
  count = 1 + int((n - block) / hop + 1e-9)
  starts = np.minimum(np.rint(np.arange(count) * hop).astype(int), n - block)
  power = np.sum(squares[starts + block] - squares[starts], axis=1) / block
  power = power[power > _power_of(-70.0)]
  if len(power):
    power = power[power > np.mean(power) / 10]
  return -0.691 + 10 * math.log10(np.mean(power)) if len(power) else -math.inf


def k_weighting(sample_rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Numerator and denominator of the shelf and the high-pass of BS.1770 at any rate.

  The constants are those of the analogue filters behind the standard's tables for 48 kHz.
  """
  f0, gain, q = 1681.974450955533, 3.999843853973347, 0.7071752369554196
  k, high = math.tan(math.pi * f0 / sample_rate), 10 ** (gain / 20)
  middle = high**0.4996667741545416
  a0 = 1 + k / q + k * k
  shelf = (
    np.array([high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k])
    / a0,
    np.array([a0, 2 * (k * k - 1), 1 - k / q + k * k]) / a0,
  )
  f0, q = 38.13547087602444, 0.5003270373238773
  k = math.tan(math.pi * f0 / sample_rate)
  a0 = 1 + k / q + k * k
  return [shelf, (np.array([1.0, -2, 1]), np.array([a0, 2 * (k * k - 1), 1 - k / q + k * k]) / a0)]


def _power_of(lufs: float) -> float:
  return 10 ** ((lufs + 0.691) / 10)


def _weighted(
  x: np.ndarray, filters: Sequence[tuple[np.ndarray, np.ndarray]], sample_rate: int
) -> np.ndarray:
  """`x` through recursive filters, by their frequency response.

  A second of silence behind keeps the periodic transform from wrapping: what rings longer than
  that is below 1e-12.
  """
  size = 1 << (len(x) + sample_rate).bit_length()
  z = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
  response = np.prod([np.polyval(b[::-1], z) / np.polyval(a[::-1], z) for b, a in filters], axis=0)
  return np.fft.irfft(np.fft.rfft(x, size, axis=0) * response[:, None], size, axis=0)[: len(x)]


def _power(x: np.ndarray, fft: int, hop: int, window: int) -> np.ndarray:
  """Power [t, f] of frames centred on multiples of `hop`, the ends mirrored."""
  if len(x) <= fft // 2:
    raise DataError(f"a sound of {len(x)} samples is too short for an FFT of {fft}")
  padded = np.pad(x, fft // 2, mode="reflect")
  before = (fft - window) // 2
  taper = np.pad(hann(window), (before, fft - window - before))
  rows = np.lib.stride_tricks.sliding_window_view(padded, fft)[::hop]
  return np.square(np.abs(np.fft.rfft(rows * taper)))


def _same_length(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  a, b = a.astype(np.float64), b.astype(np.float64)
  if len(a) != len(b) or not len(a):
    raise DataError(f"sounds of {len(a)} and {len(b)} samples cannot be compared")
  if not np.isfinite(a).all() or not np.isfinite(b).all():
    raise DataError("samples are not finite")
  return a, b
