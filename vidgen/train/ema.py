"""Exponential moving average of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp


def ema_decay(step: jax.Array, *, decay: float, warmup: int) -> jax.Array:
  """min(decay, (1 + step) / (warmup + step)), so that a young average forgets its random start.

  `step` counts the updates before this one. With `warmup` 1 the decay is constant.
  """
  t = step.astype(jnp.float32)
  return jnp.minimum(decay, (1 + t) / (warmup + t))


def update_ema(ema: Any, params: Any, *, decay: jax.Array) -> Any:
  """ema + (1 - decay) * (params - ema): where a parameter never moves, its average does not."""
  return jax.tree.map(lambda e, p: e + ((1 - decay) * (p - e)).astype(e.dtype), ema, params)
