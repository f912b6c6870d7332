"""VGGish: 128 numbers for every 0.96 s of sound ("CNN Architectures for Large-Scale Audio
Classification", Hershey et al. 2017), as torchvggish has it. FAD is measured in its space.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vidgen.nn.convolution import Convolution, max_pool
from vidgen.nn.linear import Linear
from vidgen.nn.spectrogram import frame_count, mel_filters, spectra, to_mels

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT = 400, 160, 512  # 25 ms, 10 ms
MELS, LOW, HIGH = 64, 125.0, 7500.0
FRAMES = 96  # of a window of the network, 0.96 s; windows do not overlap
LOG_OFFSET = 0.01
SHORTEST = (FRAMES - 1) * HOP + WINDOW  # samples that fill one window of the network


def window_count(samples: int) -> int:
  """Windows of the network in so many samples at 16 kHz; what does not fill one is left out."""
  return frame_count(samples, window=WINDOW, hop=HOP) // FRAMES


def log_mel(x: Float[Array, "b n"]) -> Float[Array, "b t m"]:
  """log(mel magnitudes + 0.01) of samples in [-1, 1] at 16 kHz, float32, a frame every 10 ms."""
  filters = mel_filters(
    sample_rate=SAMPLE_RATE, fft=FFT, mels=MELS, low=LOW, high=HIGH, scale="htk"
  )
  magnitudes = jnp.abs(spectra(x.astype(jnp.float32), window=WINDOW, hop=HOP, fft=FFT))
  return jnp.log(to_mels(magnitudes, filters=filters) + LOG_OFFSET)


class VGGish(nn.Module):
  """Windows of log-mel to embeddings.

  `output`: "relu" is the network as published; "linear" leaves the last ReLU out, as the usual
  FAD tools do. `channels`: of the four stages, the last two with two convolutions each.
  """

  output: Literal["linear", "relu"] = "linear"
  channels: tuple[int, int, int, int] = (64, 128, 256, 512)
  hidden: int = 4096
  width: int = 128

  @nn.compact
  def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b d"]:
    """Embeddings of windows of 96 frames by 64 mels."""
    x = x[..., None]
    for stage, (features, layers) in enumerate(zip(self.channels, (1, 1, 2, 2), strict=True)):
      for layer in range(layers):
        x = jax.nn.relu(Convolution(features, (3, 3), name=f"conv{stage}_{layer}")(x))
      x = max_pool(x, window=(2, 2), strides=(2, 2), padding="VALID")
    x = x.reshape(x.shape[0], -1)  # time, then frequency, then channel: as TensorFlow flattens
    for layer in range(2):
      x = jax.nn.relu(Linear(self.hidden, axes=(None, None), name=f"hidden{layer}")(x))
    x = Linear(self.width, axes=(None, None), name="embedding")(x)
    return jax.nn.relu(x) if self.output == "relu" else x


def released_form(
  embeddings: Float[np.ndarray, "b d"],
  *,
  eigenvectors: Float[np.ndarray, "d d"],
  means: Float[np.ndarray, "d"],
) -> Float[np.ndarray, "b d"]:
  """Embeddings as AudioSet was released with: whitened by PCA, cut to [-2, 2], 0 to 255 whole."""
  whitened = (embeddings.astype(np.float64) - means) @ eigenvectors.T.astype(np.float64)
  return np.rint((np.clip(whitened, -2, 2) + 2) * (255 / 4)).astype(np.float32)
