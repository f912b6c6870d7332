"""LPIPS 0.1: a perceptual distance of pictures (Zhang et al., 2018), as a metric and as a loss."""

from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.models import alexnet, vgg
from vidgen.models.alexnet import AlexNetFeatures
from vidgen.models.vgg import VGG16Features
from vidgen.nn.weights import ones, weight

Net = Literal["vgg", "alex"]
NETS: tuple[str, ...] = get_args(Net)
EPSILON = 1e-10
# What pictures in [-1, 1] are shifted and divided by: ImageNet's statistics in that range.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
  """The distance by the trunk `net`: "vgg" is the usual training loss, "alex" what is reported.

  The trunk computes in `dtype`, distances of what it returns are float32.
  """

  net: Net = "alex"
  dtype: str = "float32"

  def example(self) -> tuple[jax.Array, jax.Array]:
    """Inputs, for the shapes of the parameters."""
    return jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 3))

  @nn.compact
  def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    """The distance of each pair of RGB pictures in [-1, 1]; differentiable, also where it is zero.

    Raises:
      ValueError: an unknown trunk, or pictures too small for it.
    """
    if self.net not in NETS:
      raise ValueError(f"LPIPS has no trunk {self.net!r}")
    trunk = VGG16Features(name="trunk") if self.net == "vgg" else AlexNetFeatures(name="trunk")
    # each beside its other, so that with the batch split over devices nothing moves between them
    both = jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]).astype(jnp.float32)
    both = (both - jnp.array(SHIFT)) / jnp.array(SCALE)
    total = jnp.zeros(len(a), jnp.float32)
    for i, tap in enumerate(trunk(both.astype(self.dtype))):
      unit = _unit(tap.astype(jnp.float32)).reshape(len(a), 2, *tap.shape[1:])
      head = weight(self, f"head{i}", shape=tap.shape[-1:], axes=[None], init=ones)
      total = total + (jnp.square(unit[:, 0] - unit[:, 1]) * head).sum(-1).mean((1, 2))
    return total


def _unit(x: jax.Array) -> jax.Array:
  """Every position's channels at length one; where all are zero they stay so, gradient included."""
  squares = jnp.square(x).sum(-1, keepdims=True)
  some = squares > 0
  return x / (jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0) + EPSILON)


def lpips_flops(net: Net, *, height: int, width: int) -> float:
  """FLOPs of the convolutions for one pair of pictures, forward."""
  total, inputs = 0.0, 3
  if net == "vgg":
    for features, count in vgg.STAGES:
      for _ in range(count):
        total += 2.0 * height * width * 9 * inputs * features
        inputs = features
      height, width = height // 2, width // 2
    return 2 * total
  for name, (features, size, stride, around) in alexnet.LAYERS.items():
    if name in alexnet.POOLED:
      height, width = ((side - 3) // 2 + 1 for side in (height, width))
    height, width = ((side + 2 * around - size) // stride + 1 for side in (height, width))
    total += 2.0 * height * width * size**2 * inputs * features
    inputs = features
  return 2 * total
