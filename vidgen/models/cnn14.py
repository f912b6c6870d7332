"""Cnn14 of PANNs: 2,048 numbers and 527 AudioSet classes for a clip of sound ("PANNs: Large-Scale
Pretrained Audio Neural Networks for Audio Pattern Recognition", Kong et al. 2020).

The Frechet distance in its space is FD(PANNs), which is not FAD.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidgen.nn.convolution import Convolution, FrozenBatchNorm, average_pool
from vidgen.nn.linear import Linear
from vidgen.nn.spectrogram import mel_filters, spectra, to_mels

FLOOR = 1e-10  # of mel power
HALVINGS = 5  # of time, by the blocks
SHORTEST = 2**HALVINGS  # frames


@dataclasses.dataclass(frozen=True)
class Cnn14FrontEnd:
  """The log-mel that a published set of weights was trained on; windows and hops in samples."""

  sample_rate: int
  window: int
  hop: int
  low: float
  high: float
  mels: int = 64

  def filters(self) -> Float[np.ndarray, "f m"]:
    """The mel filters, also stored in the published weights."""
    return mel_filters(
      sample_rate=self.sample_rate,
      fft=self.window,
      mels=self.mels,
      low=self.low,
      high=self.high,
      scale="slaney",
    )

  def frames(self, samples: int) -> int:
    """Frames of so many samples."""
    return 1 + samples // self.hop


FRONT_ENDS = {
  "32k": Cnn14FrontEnd(32_000, 1024, 320, 50.0, 14_000.0),
  "16k": Cnn14FrontEnd(16_000, 512, 160, 50.0, 8_000.0),
  "8k": Cnn14FrontEnd(8_000, 256, 80, 50.0, 4_000.0),
}


def mirrored(x: Float[np.ndarray, "n"], *, front_end: Cnn14FrontEnd) -> Float[np.ndarray, "m"]:
  """Samples with half a window mirrored at both ends, so that frame i is centred on i hops."""
  return np.pad(x, front_end.window // 2, mode="reflect")


def log_mel(x: Float[Array, "b m"], *, front_end: Cnn14FrontEnd) -> Float[Array, "b t m2"]:
  """10 log10 of mel power, at least -100, of samples that `mirrored` has padded."""
  window, hop = front_end.window, front_end.hop
  coefficients = spectra(x.astype(jnp.float32), window=window, hop=hop, fft=window)
  power = jnp.square(coefficients.real) + jnp.square(coefficients.imag)
  return 10 * jnp.log10(jnp.maximum(to_mels(power, filters=front_end.filters()), FLOOR))


class Cnn14(nn.Module):
  """Log-mel of clips to {"embedding", "logits"}, float32.

  `channels`: of the six blocks; `width`: of the embedding; `classes`: of AudioSet.
  """

  channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  width: int = 2048
  classes: int = 527

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t m"], lengths: Int[Array, " b"]
  ) -> dict[str, Float[Array, "b _"]]:
    """Embeddings and logits. Clip i has `lengths[i]` frames, at least 32; the rest counts not.

    What follows a clip is set to zero before every convolution, so it is to the clip as the edge
    of the array is: padding changes nothing.
    """
    x = FrozenBatchNorm(1e-5, use_scale=True, name="norm")(x)[..., None]
    for block, features in enumerate(self.channels):
      for layer in range(2):
        x = jnp.where(_within(x.shape, lengths), x, 0)
        convolution = Convolution(features, (3, 3), use_bias=False, name=f"conv{block}_{layer}")
        norm = FrozenBatchNorm(1e-5, use_scale=True, name=f"norm{block}_{layer}")
        x = jax.nn.relu(norm(convolution(x)))
      if block < HALVINGS:
        x = average_pool(x, window=(2, 2), strides=(2, 2), padding="VALID", divisor="window")
        lengths = lengths // 2
    x = jnp.mean(x, axis=2)
    inside = _within(x.shape, lengths)
    most = jnp.max(jnp.where(inside, x, -jnp.inf), axis=1)
    mean = jnp.sum(jnp.where(inside, x, 0), axis=1) / lengths[:, None]
    x = jax.nn.relu(Linear(self.width, axes=(None, None), name="embedding")(most + mean))
    return {"embedding": x, "logits": Linear(self.classes, axes=(None, None), name="classes")(x)}


def _within(shape: Sequence[int], lengths: Int[Array, " b"]) -> Array:
  """Whether a place [b, t, 1 ...] is before the end of its clip."""
  return (jnp.arange(shape[1]) < lengths[:, None]).reshape(*shape[:2], *[1] * (len(shape) - 2))
