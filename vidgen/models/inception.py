"""Inception-v3 as FID and IS take it: TensorFlow's graph of 2015-12-05, with 1,008 classes.

It differs from later Inception-v3 in its pools: means are over what is inside of the picture, and
the pool of the last block is a maximum.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.nn.convolution import (
  Convolution,
  FrozenBatchNorm,
  Padding,
  average_pool,
  for_relu,
  max_pool,
)
from vidgen.nn.weights import fan_in, weight, zeros

SIDE = 299
Pool = Literal["mean", "max"]
# A unit: its name, width, kernel. A branch: units one after the other.
Unit = tuple[str, int, tuple[int, int]]


class BasicConv(nn.Module):
  """Convolution without bias, frozen batch norm, ReLU."""

  features: int
  kernel: Sequence[int]
  stride: int = 1
  padding: Padding = "SAME"
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b _ _ o"]:
    """Any size."""
    x = Convolution(
      self.features,
      self.kernel,
      (self.stride,) * 2,
      self.padding,
      use_bias=False,
      init=for_relu(3),
      name="conv",
    )(x)
    return jax.nn.relu(FrozenBatchNorm(self.epsilon, name="bn")(x))


def _pooled(x: jax.Array, pool: Pool) -> jax.Array:
  """A 3 x 3 window around every position."""
  if pool == "max":
    return max_pool(x, window=(3, 3), padding="SAME")
  return average_pool(x, window=(3, 3), padding="SAME", divisor="inside")


class Block(nn.Module):
  """Branches of units, and one that pools before its unit; the sides stay.

  With `split`, every branch but the first and the last ends in a pair of units that read the same.
  """

  branches: Sequence[Sequence[Unit]]
  pooled: int
  pool: Pool = "mean"
  split: bool = False
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """Concatenates the branches."""

    def unit(of: Unit) -> Callable[[Any], Any]:
      name, width, kernel = of
      return BasicConv(width, kernel, epsilon=self.epsilon, name=name)

    parts = []
    for branch in self.branches:
      y, units = x, [unit(of) for of in branch]
      paired = self.split and len(units) > 1
      for layer in units[:-2] if paired else units:
        y = layer(y)
      parts += [units[-2](y), units[-1](y)] if paired else [y]
    parts.append(unit(("branch_pool", self.pooled, (1, 1)))(_pooled(x, self.pool)))
    return jnp.concatenate(parts, axis=-1)


class Reduction(nn.Module):
  """Branches that end in a stride of two without padding, and a maximum of the same."""

  branches: Sequence[Sequence[Unit]]
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b _ _ o"]:
    """Concatenates the branches."""
    parts = []
    for branch in self.branches:
      y = x
      for name, width, kernel in branch[:-1]:
        y = BasicConv(width, kernel, epsilon=self.epsilon, name=name)(y)
      name, width, kernel = branch[-1]
      parts.append(BasicConv(width, kernel, 2, "VALID", epsilon=self.epsilon, name=name)(y))
    parts.append(max_pool(x, window=(3, 3), strides=(2, 2)))
    return jnp.concatenate(parts, axis=-1)


def _a(pooled: int) -> dict[str, Any]:
  return {
    "branches": (
      (("branch1x1", 64, (1, 1)),),
      (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
      (
        ("branch3x3dbl_1", 64, (1, 1)),
        ("branch3x3dbl_2", 96, (3, 3)),
        ("branch3x3dbl_3", 96, (3, 3)),
      ),
    ),
    "pooled": pooled,
  }


def _c(width: int) -> dict[str, Any]:
  return {
    "branches": (
      (("branch1x1", 192, (1, 1)),),
      (
        ("branch7x7_1", width, (1, 1)),
        ("branch7x7_2", width, (1, 7)),
        ("branch7x7_3", 192, (7, 1)),
      ),
      (
        ("branch7x7dbl_1", width, (1, 1)),
        ("branch7x7dbl_2", width, (7, 1)),
        ("branch7x7dbl_3", width, (1, 7)),
        ("branch7x7dbl_4", width, (7, 1)),
        ("branch7x7dbl_5", 192, (1, 7)),
      ),
    ),
    "pooled": 192,
  }


def _e(pool: Pool) -> dict[str, Any]:
  return {
    "branches": (
      (("branch1x1", 320, (1, 1)),),
      (
        ("branch3x3_1", 384, (1, 1)),
        ("branch3x3_2a", 384, (1, 3)),
        ("branch3x3_2b", 384, (3, 1)),
      ),
      (
        ("branch3x3dbl_1", 448, (1, 1)),
        ("branch3x3dbl_2", 384, (3, 3)),
        ("branch3x3dbl_3a", 384, (1, 3)),
        ("branch3x3dbl_3b", 384, (3, 1)),
      ),
    ),
    "pooled": 192,
    "pool": pool,
    "split": True,
  }


BLOCKS: dict[str, dict[str, Any]] = {
  "Mixed_5b": _a(32),
  "Mixed_5c": _a(64),
  "Mixed_5d": _a(64),
  "Mixed_6b": _c(128),
  "Mixed_6c": _c(160),
  "Mixed_6d": _c(160),
  "Mixed_6e": _c(192),
  "Mixed_7b": _e("mean"),
  "Mixed_7c": _e("max"),
}
REDUCTIONS: dict[str, Sequence[Sequence[Unit]]] = {
  "Mixed_6a": (
    (("branch3x3", 384, (3, 3)),),
    (
      ("branch3x3dbl_1", 64, (1, 1)),
      ("branch3x3dbl_2", 96, (3, 3)),
      ("branch3x3dbl_3", 96, (3, 3)),
    ),
  ),
  "Mixed_7a": (
    (("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
    (
      ("branch7x7x3_1", 192, (1, 1)),
      ("branch7x7x3_2", 192, (1, 7)),
      ("branch7x7x3_3", 192, (7, 1)),
      ("branch7x7x3_4", 192, (3, 3)),
    ),
  ),
}
# Width, kernel, stride, padding; None is a maximum over 3 x 3 of stride two.
STEM: dict[str, tuple[int, int, int, Padding] | None] = {
  "Conv2d_1a_3x3": (32, 3, 2, "VALID"),
  "Conv2d_2a_3x3": (32, 3, 1, "VALID"),
  "Conv2d_2b_3x3": (64, 3, 1, "SAME"),
  "MaxPool_1": None,
  "Conv2d_3b_1x1": (80, 1, 1, "VALID"),
  "Conv2d_4a_3x3": (192, 3, 1, "VALID"),
  "MaxPool_2": None,
}
LAYERS = (*STEM, *sorted({*BLOCKS, *REDUCTIONS}))
# Where the features named by their width are taken, as means over positions.
TAPS = {"MaxPool_1": "64", "MaxPool_2": "192", "Mixed_6e": "768", "Mixed_7c": "2048"}


class InceptionV3(nn.Module):
  """The network of `classes`. `last_pool` is there to show what the usual mistake changes."""

  classes: int = 1008
  epsilon: float = 1e-3
  last_pool: Pool = "max"

  def example(self) -> tuple[jax.Array]:
    """An input, for the shapes of the parameters."""
    return (jnp.zeros((1, SIDE, SIDE, 3)),)

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b _"]]:
    """Six features for pictures in [-1, 1), made for 299 x 299.

    "64", "192", "768", "2048"; "logits_unbiased" [b, classes], which IS takes, and "logits", with
    the bias.
    """
    x, found = images, {}
    for name in LAYERS:
      if name in STEM:
        of = STEM[name]
        if of is None:
          x = max_pool(x, window=(3, 3), strides=(2, 2))
        else:
          width, size, stride, padding = of
          x = BasicConv(width, (size, size), stride, padding, self.epsilon, name=name)(x)
      elif name in REDUCTIONS:
        x = Reduction(REDUCTIONS[name], self.epsilon, name=name)(x)
      else:
        fields = dict(BLOCKS[name])
        if name == "Mixed_7c":
          fields["pool"] = self.last_pool
        x = Block(**fields, epsilon=self.epsilon, name=name)(x)
      if name in TAPS:
        found[TAPS[name]] = x.mean((1, 2))
    # The kernel and bias of `fc`, apart, as one feature is without the bias.
    shape = [x.shape[-1], self.classes]
    kernel = weight(self, "fc_kernel", shape=shape, axes=[None, None], init=fan_in())
    bias = weight(self, "fc_bias", shape=shape[1:], axes=[None], init=zeros)
    pooled = found["2048"]
    found["logits_unbiased"] = jnp.matmul(pooled, kernel, precision=jax.lax.Precision.HIGHEST)
    found["logits"] = found["logits_unbiased"] + bias
    return found
