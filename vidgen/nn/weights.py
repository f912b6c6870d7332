"""Parameters: float32 arrays that carry the logical names of their axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]

zeros: Initializer = nn.initializers.zeros_init()
ones: Initializer = nn.initializers.ones_init()


def weight(
  module: nn.Module,
  name: str,
  *,
  shape: Sequence[int],
  axes: Sequence[str | None],
  init: Initializer,
) -> Float[Array, "..."]:
  """The float32 parameter `name` of `module`; `axes` names each of its axes, for sharding rules."""
  if len(shape) != len(axes):
    raise ValueError(f"{name}: shape {tuple(shape)} and axes {tuple(axes)} differ in length")
  boxed = nn.with_logical_partitioning(init, tuple(axes))
  # Parameters may come as NumPy arrays, straight from a file.
  return jnp.asarray(module.param(name, boxed, tuple(shape), jnp.float32))


def normal(stddev: float) -> Initializer:
  """A normal initializer, for tables."""
  return nn.initializers.normal(stddev)


def fan_in(inputs: int = 1) -> Initializer:
  """Truncated normal of variance 1 / fan-in, the first `inputs` axes being those contracted."""

  def init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    # 0.8796 is the standard deviation of a unit normal truncated at two: divided out.
    stddev = 1 / (math.sqrt(math.prod(shape[:inputs])) * 0.87962566103423978)
    return stddev * jax.random.truncated_normal(key, -2, 2, tuple(shape), dtype)

  return init
