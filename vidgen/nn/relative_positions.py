"""T5's relative positions: a learnt number a head for each range of distances, added to scores."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidgen.nn.weights import Initializer, normal, weight


def relative_buckets(
  queries: int, keys: int, *, buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "{queries} {keys}"]:
  """The bucket, from 0, of the distance between every query and key.

  The upper half of the buckets is for keys that come later. Of each half, the first half is for one
  distance each; the others widen geometrically up to `max_distance`, and the last takes what is
  beyond (Raffel et al. 2020, section 2.1). Distances known beforehand: no device computes them.
  """
  distance = np.arange(keys)[None, :] - np.arange(queries)[:, None]
  half = buckets // 2
  exact = half // 2
  far = np.abs(distance)
  # float32, as the released models were trained: a bound may fall on the other side in float64
  ratio = np.log(np.maximum(far, exact).astype(np.float32) / np.float32(exact))
  ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
  wide = np.minimum(exact + ratio.astype(np.int32), half - 1)
  return ((distance > 0) * half + np.where(far < exact, far, wide)).astype(np.int32)


class RelativePositions(nn.Module):
  """The table [buckets, heads] and what it adds to the scores; `init` is the table's."""

  heads: int
  buckets: int = 32
  max_distance: int = 128
  init: Initializer = normal(0.02)

  @nn.compact
  def __call__(self, queries: int, keys: int) -> Float[Array, "n s l"]:
    """The bias of every head, query and key, float32."""
    shape = [self.buckets, self.heads]
    table = weight(self, "table", shape=shape, axes=[None, "heads"], init=self.init)
    index = relative_buckets(queries, keys, buckets=self.buckets, max_distance=self.max_distance)
    return jnp.moveaxis(table[index], -1, 0)
