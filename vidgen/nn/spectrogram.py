"""Short-time spectra and mel filters: the parts that front ends of audio networks are made of.

Each network's own front end (which window, which scale, which logarithm) is in the network's file.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

MelScale = Literal["htk", "slaney"]


def hann(length: int) -> Float[np.ndarray, "w"]:
  """The periodic Hann window, float64: one whole period, without the second zero."""
  return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def frame_count(samples: int, *, window: int, hop: int) -> int:
  """How many whole windows there are in `samples`."""
  return 0 if samples < window else 1 + (samples - window) // hop


def frames(x: Float[Array, "b n"], *, window: int, hop: int) -> Float[Array, "b t w"]:
  """Windows of `window` samples every `hop`; samples after the last whole one are left out."""
  count = frame_count(x.shape[1], window=window, hop=hop)
  return x[:, np.arange(count)[:, None] * hop + np.arange(window)]


def spectra(x: Float[Array, "b n"], *, window: int, hop: int, fft: int) -> Complex[Array, "b t f"]:
  """Fourier coefficients 0 to fft / 2 of every Hann-windowed frame, padded with zeros to `fft`."""
  windowed = frames(x, window=window, hop=hop) * jnp.asarray(hann(window), x.dtype)
  return jnp.fft.rfft(windowed, n=fft)


def mel_filters(
  *, sample_rate: int, fft: int, mels: int, low: float, high: float, scale: MelScale
) -> Float[np.ndarray, "f m"]:
  """Triangles over the fft / 2 + 1 frequencies, equally spaced in mel from `low` to `high` Hz.

  "htk": 1127 ln(1 + f / 700), straight in mel, peak 1, nothing at frequency 0 (VGGish). "slaney":
  linear below 1 kHz and logarithmic above, straight in Hz, area 1 (librosa, PANNs). float64.
  """
  bins = np.linspace(0, sample_rate / 2, fft // 2 + 1)
  if scale == "htk":
    edges = np.linspace(htk_mel(low), htk_mel(high), mels + 2)
    weights = _triangles(htk_mel(bins), edges)
    weights[0] = 0
    return weights
  edges = slaney_hertz(np.linspace(slaney_mel(low), slaney_mel(high), mels + 2))
  return _triangles(bins, edges) * (2 / (edges[2:] - edges[:-2]))


def htk_mel(hertz):
  """Mel of a frequency, as HTK has it."""
  return 1127 * np.log1p(np.asarray(hertz) / 700)


def slaney_mel(hertz):
  """Mel of a frequency: 3 / 200 a Hz up to 1 kHz, then 27 for every factor of 6.4."""
  hertz = np.asarray(hertz, np.float64)
  above = 15 + 27 * np.log(np.maximum(hertz, 1000) / 1000) / np.log(6.4)
  return np.where(hertz < 1000, hertz * 3 / 200, above)


def slaney_hertz(mel):
  """The inverse of `slaney_mel`."""
  mel = np.asarray(mel, np.float64)
  return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


def _triangles(points: np.ndarray, edges: np.ndarray) -> np.ndarray:
  rising = (points[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
  falling = (edges[2:] - points[:, None]) / (edges[2:] - edges[1:-1])
  return np.maximum(0, np.minimum(rising, falling))


def to_mels(
  x: Float[Array, "b t f"], *, filters: Float[np.ndarray, "f m"]
) -> Float[Array, "b t m"]:
  """Energies of mel bands; the sum is float32 whatever the accelerator's default."""
  return jnp.matmul(x, jnp.asarray(filters, x.dtype), precision=jax.lax.Precision.HIGHEST)
