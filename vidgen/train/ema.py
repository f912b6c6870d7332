"""Exponential moving average of the parameters."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(step: jax.Array, *, decay: float, warmup: int) -> jax.Array:
  """min(decay, (1 + step) / (warmup + step)), so that a young average forgets its random start.

  `step` counts the updates before this one. With `warmup` 1 the decay is constant.
  """
  t = step.astype(jnp.float32)
  return jnp.minimum(decay, (1 + t) / (warmup + t))


def update_ema(ema: Any, params: Any, *, decay: jax.Array, rng: jax.Array) -> Any:
  """ema + (1 - decay) * (params - ema): where a parameter never moves, a float32 average does not.

  An average kept in bfloat16 is rounded up or down at random, by the typed key `rng`, with its
  mean unchanged: rounded to the nearest, the small steps of a long average would all be lost.
  """

  def update(path: Any, e: jax.Array, p: jax.Array) -> jax.Array:
    exact = e.astype(p.dtype) + (1 - decay).astype(p.dtype) * (p - e.astype(p.dtype))
    if e.dtype == p.dtype:
      return exact
    name = zlib.crc32(jax.tree_util.keystr(path).encode())  # one key an array, whatever the order
    return stochastic_bfloat16(exact, jax.random.fold_in(rng, name))

  return jax.tree_util.tree_map_with_path(update, ema, params)


def stochastic_bfloat16(x: jax.Array, rng: jax.Array) -> jax.Array:
  """float32 `x` as bfloat16, one of its two neighbours at random, so that the mean is `x`."""
  noise = jax.random.bits(rng, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
  high = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
  return jnp.where(jnp.isfinite(x), high, x.astype(jnp.bfloat16))
