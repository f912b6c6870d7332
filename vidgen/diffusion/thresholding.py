"""Keeping predicted data within [-1, 1] under strong guidance (Imagen, section 2.3).

Both are of whole examples: a share of a clip's own frames would make its brightness flicker.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def static_threshold(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """`x` clipped to [-1, 1]."""
  return jnp.clip(x, -1, 1)


def dynamic_threshold(
  x: Float[Array, "b *shape"], *, percentile: float = 0.995
) -> Float[Array, "b *shape"]:
  """Each example clipped to [-s, s] and divided by s, the quantile of its |x|, at least 1."""
  scale = jnp.maximum(quantile(jnp.abs(x).reshape(len(x), -1), share=percentile), 1)
  scale = scale.reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.clip(x, -scale, scale) / scale


def quantile(x: Float[Array, "b n"], *, share: float) -> Float[Array, " b"]:
  """As `numpy.quantile` of each row, `share` in [0, 1], for values that are not negative; float32.

  By counting, 31 times over: a clip is never sorted, and a batch that is split over devices stays
  so.

  Raises:
    ValueError: `share` outside of [0, 1].
  """
  if not 0 <= share <= 1:
    raise ValueError(f"share must lie in [0, 1], got {share}")
  x = x.astype(jnp.float32)
  below = int(share * (x.shape[1] - 1))
  part = share * (x.shape[1] - 1) - below
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)  # in the order of the values, as none is < 0

  def narrowed(i: Int[Array, ""], least: Int[Array, " b"]) -> Int[Array, " b"]:
    tried = least | (jnp.int32(1) << (30 - i))
    return jnp.where((bits < tried[:, None]).sum(1) <= below, tried, least)

  found = jax.lax.fori_loop(0, 31, narrowed, jnp.zeros(len(x), jnp.int32))
  low = jax.lax.bitcast_convert_type(found, jnp.float32)
  higher = jnp.where(bits > found[:, None], x, jnp.inf).min(1)
  next_one = jnp.where((bits <= found[:, None]).sum(1) > below + 1, low, higher)
  return low + part * (next_one - low) if part else low
