"""The training state: all that changes from step to step, and all that a checkpoint carries."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vidgen.systems.stage import Stage

# Purposes of random numbers, folded into (seed, step). A new use takes a new number.
TRAIN, EVALUATE, INIT, AVERAGE = 1, 2, 3, 4


@flax.struct.dataclass
class TrainState:
  """Step, parameters, their average, optimizer state, and counters of non-finite steps.

  step: int32, steps done, the skipped ones included; ema is a tree like params. bad_steps counts
  the non-finite steps in a row up to now, bad_total all of them.
  """

  step: Any
  params: Any
  ema: Any
  opt_state: Any
  bad_steps: Any
  bad_total: Any


def init_state(
  seed: int,
  *,
  stage: Stage,
  tx: optax.GradientTransformation,
  ema_dtype: str = "float32",
) -> TrainState:
  """A fresh state; a pure function of its arguments, to be run under jit with shardings.

  `tx` as `optimizer.make_optimizers` makes it, which knows what does not train.
  """
  params = stage.init(example_keys(seed, jnp.int32(0), purpose=INIT, count=1)[0])
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=params,
    ema=jax.tree.map(lambda p: jnp.array(p, ema_dtype), params),
    opt_state=tx.init(params),
    bad_steps=zero,
    bad_total=zero,
  )


def example_keys(seed: int, step: jax.Array, *, purpose: int, count: int) -> jax.Array:
  """Typed keys [count]; key j depends on (seed, step, purpose, j) alone, j global in the batch."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))
