"""Embeddings of diffusion time and of positions."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.nn.weights import normal, weight


def timestep_embedding(
  time: Float[Array, " b"], *, width: int = 256, scale: float = 1000.0, period: float = 10_000.0
) -> Float[Array, "b {width}"]:
  """Cosines, then sines, of `scale * time` at geometrically spaced frequencies; float32.

  `time` is in [0, 1]; `scale` brings it to the range of the frequencies, 1 down to 1 / `period`.
  """
  half = width // 2
  frequencies = jnp.exp(-math.log(period) / half * jnp.arange(half, dtype=jnp.float32))
  angles = scale * time.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class FactorisedPositions(nn.Module):
  """Learnable tables for t, h and w whose rows are summed (Movie Gen, section 3.1.3).

  `sizes` is the number of rows of each table: the largest t, h and w, in patches. `init_scale` is
  the standard deviation of fresh rows.
  """

  sizes: tuple[int, int, int]
  width: int
  init_scale: float = 0.02

  @nn.compact
  def __call__(self, grid: tuple[int, int, int]) -> Float[Array, "s d"]:
    """Positions of the tokens of a `grid` of t x h x w patches, t slowest: [t h w, d] float32.

    Raises:
      ValueError: the grid is larger than the tables.
    """
    total = jnp.zeros((), jnp.float32)
    for i, (axis, size, length) in enumerate(zip("thw", self.sizes, grid, strict=True)):
      init = normal(self.init_scale)
      table = weight(self, axis, shape=[size, self.width], axes=[None, "embed"], init=init)
      if length > size:
        raise ValueError(f"{length} positions along {axis}, but the table has {size}")
      shape = [1, 1, 1, self.width]
      shape[i] = length
      total = total + table[:length].reshape(shape)
    return total.reshape(-1, self.width)
