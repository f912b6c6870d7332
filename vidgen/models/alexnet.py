"""The convolutions of AlexNet, in the one-column form of Krizhevsky (2014) that torchvision has."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vidgen.nn.convolution import Convolution, for_relu, max_pool

# Width, kernel, stride, padding; before the second and the third comes a pool.
LAYERS = {
  "conv1": (64, 11, 4, 2),
  "conv2": (192, 5, 1, 2),
  "conv3": (384, 3, 1, 1),
  "conv4": (256, 3, 1, 1),
  "conv5": (256, 3, 1, 1),
}
POOLED = ("conv2", "conv3")
LEAST_SIDE = 31


class AlexNetFeatures(nn.Module):
  """Five convolutions, each with a ReLU."""

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
    """The activation of every convolution.

    Raises:
      ValueError: pictures smaller than 31 x 31.
    """
    if min(images.shape[1:3]) < LEAST_SIDE:
      raise ValueError(f"AlexNet needs {LEAST_SIDE} x {LEAST_SIDE} pixels, not {images.shape[1:3]}")
    x, taps = images, []
    for name, (width, size, stride, around) in LAYERS.items():
      if name in POOLED:
        x = max_pool(x, window=(3, 3), strides=(2, 2))
      convolution = Convolution(
        width,
        (size, size),
        (stride, stride),
        [(around, around)] * 2,
        axes=("embed", "embed_out"),
        init=for_relu(3),
        name=name,
      )
      x = jax.nn.relu(convolution(x))
      taps.append(x)
    return taps
