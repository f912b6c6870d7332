"""A discriminator of patches: is this part of a picture, or of a clip, real or reconstructed?

The network of pix2pix (Isola et al., 2017, section 3.2.2), as autoencoders are trained with; its
norms know one example only, for which of what else is in the batch nothing may depend.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vidgen.nn.convolution import Convolution, for_relu
from vidgen.nn.norm import GroupNorm
from vidgen.nn.partition import constrain

Over = Literal["frame", "clip"]
SIDE = 4  # of a kernel
SLOPE = 0.2  # of LeakyReLU below zero


class PatchDiscriminator(nn.Module):
  """`layers` convolutions that halve the sides, the first to `channels`, each next to twice as many
  up to eight times; one more of stride 1, and one to the logits.

  `over` "frame" sees every frame by itself; "clip" also convolves over three frames in each layer,
  and its norms take their statistics from the whole clip.
  """

  channels: int = 64
  layers: int = 3
  groups: int = 32
  over: Over = "frame"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t _ _"]:
    """Logits of the patches of each frame, float32; positive for real."""
    b, t = video.shape[:2]
    frames = self.over == "frame"
    x = video.reshape(b * t, *video.shape[2:]) if frames else video
    x = x.astype(self.dtype)
    for i, (width, stride) in enumerate(self.convolutions()):
      last = i == self.layers + 1
      kernel, strides = (SIDE, SIDE), (stride, stride)
      x = Convolution(
        width,
        kernel if frames else (3, *kernel),
        strides if frames else (1, *strides),
        use_bias=i == 0 or last,  # a norm has a bias of its own
        axes=(None, None) if last else ("embed" if i else None, "embed_out"),
        init=None if last else for_relu(x.ndim - 1),
        name=f"conv_{i}",
      )(x)
      if not last:
        x = constrain(x, axes=("batch", *(None,) * (x.ndim - 1)))
        x = x if i == 0 else GroupNorm(math.gcd(self.groups, width), name=f"norm_{i}")(x)
        x = jax.nn.leaky_relu(x, SLOPE)
    return x.reshape(b, t, *x.shape[-3:-1]).astype("float32")

  def convolutions(self) -> list[tuple[int, int]]:
    """The width and the stride of each."""
    widths = [self.channels * min(2**i, 8) for i in range(self.layers + 1)]
    return [*((w, 2) for w in widths[:-1]), (widths[-1], 1), (1, 1)]


def discriminator_flops(
  network: PatchDiscriminator, *, frames: int, height: int, width: int
) -> float:
  """FLOPs of the convolutions for one clip, forward."""
  taps = SIDE**2 * (1 if network.over == "frame" else 3)
  total, inputs = 0.0, 3
  for features, stride in network.convolutions():
    height, width = -(-height // stride), -(-width // stride)
    total += 2.0 * frames * height * width * taps * inputs * features
    inputs = features
  return total
