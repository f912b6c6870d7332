"""The convolutions of VGG16 (Simonyan and Zisserman, 2014), configuration D."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vidgen.nn.convolution import Convolution, for_relu, max_pool

# The width and number of convolutions of each stage; a pool between stages.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
LEAST_SIDE = 16


class VGG16Features(nn.Module):
  """Thirteen convolutions of 3 x 3, each with a ReLU."""

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
    """The last activation of each stage, before its pool: relu1_2, relu2_2, relu3_3 and so on.

    Raises:
      ValueError: pictures smaller than 16 x 16.
    """
    if min(images.shape[1:3]) < LEAST_SIDE:
      raise ValueError(f"VGG16 needs {LEAST_SIDE} x {LEAST_SIDE} pixels, not {images.shape[1:3]}")
    x, taps = images, []
    for stage, (width, count) in enumerate(STAGES, start=1):
      if stage > 1:
        x = max_pool(x, window=(2, 2), strides=(2, 2))
      for i in range(1, count + 1):
        name = f"conv{stage}_{i}"
        axes = ("embed", "embed_out")
        convolution = Convolution(width, (3, 3), axes=axes, init=for_relu(3), name=name)
        x = jax.nn.relu(convolution(x))
      taps.append(x)
    return taps
