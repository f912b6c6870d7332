"""A small training state with every kind of leaf, for tests of checkpoints."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

from vidgen.train.checkpoint import Checkpoints

CONFIG = {"name": "small", "train": {"seed": 3, "rate": 1e-3}, "sizes": [1, 2]}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  step: Any
  params: Any
  ema: Any
  opt_state: Any
  bad_steps: Any


def state(seed: int) -> State:
  """Float32, bfloat16, int8 and bool leaves, a scalar, NaN, -0 and subnormals."""
  rng = np.random.default_rng(seed)
  normal = rng.standard_normal((64, 32)).astype(np.float32)
  odd = np.array([np.nan, -0.0, np.inf, 1e-42, seed], np.float32)
  params = {
    "block": {"kernel": normal, "bias": normal[0].astype(ml_dtypes.bfloat16), "odd": odd},
    "scale": np.float32(seed),
  }
  params = jax.tree.map(jnp.asarray, params)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  extra = {
    "codes": jnp.asarray(rng.integers(-128, 128, (3, 5)), jnp.int8),
    "mask": jnp.asarray(rng.integers(0, 2, 7), jnp.bool_),
  }
  opt_state = (*jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params)), extra)
  ema = jax.tree.map(lambda leaf: leaf * 2, params)
  return State(jnp.int32(seed), params, ema, opt_state, jnp.int32(0))


def like(state: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
  """Its abstract value; matrices whose sides divide get `sharding`, everything else is whole."""

  def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    layout = sharding
    if isinstance(sharding, jax.NamedSharding) and leaf.shape != (64, 32):
      layout = jax.NamedSharding(sharding.mesh, jax.P())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

  return jax.tree.map(abstract, state)


def save(directory: Any, *steps: int, **options: Any) -> None:
  """Saves `state(step)` at each step, waiting for each."""
  checkpoints = Checkpoints(directory, **options)
  for step in steps:
    checkpoints.save(step, state(step), {"position": step}, CONFIG)
    checkpoints.wait()
  checkpoints.close()


def assert_same_bits(one: Any, other: Any) -> None:
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.tobytes() == b.tobytes()
