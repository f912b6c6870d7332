"""The train step: one pure function, shared by the loop, the benchmarks, the planner and tests."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vidgen.systems.stage import Batch, Metrics, Params, Stage, advanced
from vidgen.train.ema import ema_decay, update_ema
from vidgen.train.experiment import TrainConfig
from vidgen.train.optimizer import MAIN, Parts, learning_rate, merge
from vidgen.train.state import AVERAGE, EVALUATE, TRAIN, TrainState, example_keys


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  stage: Stage,
  tx: optax.GradientTransformationExtraArgs,
  config: TrainConfig,
) -> tuple[TrainState, Metrics]:
  """One update from one global batch; arrays have a leading axis b, a multiple of accumulate.

  `tx` is what `optimizer.make_optimizers` makes of `config`.
  A step whose loss, gradient or update is not finite leaves parameters, average and optimizer as
  they are and counts itself; the step number moves on, and with it the data and the schedule, and
  what the stage changes by step (`systems.stage.advanced`).

  Returns:
    The next state, and float32 scalars: "loss", "gradient_norm" (before clipping), "update_norm",
    "learning_rate", "bad_steps" (non-finite ones in a row), and what the stage reports. The norms
    and the rate are those of `config.optimizer`; of the other optimizers their label is appended.
  """
  size = jax.tree.leaves(batch)[0].shape[0]
  keys = example_keys(config.seed, state.step, purpose=TRAIN, count=size)
  parts = Parts.of(config, still=stage.frozen)
  before = advanced(stage, state.params, state.step)
  loss, metrics, gradients = gradient(
    before, batch, keys, stage=stage, accumulate=config.accumulate, moving=parts.moving
  )
  clipped, gradient_norms = {}, {}
  for label, part in parts.split(gradients).items():
    gradient_norms[label] = norm = optax.tree.norm(part)
    clip = jnp.minimum(1.0, parts.configs[label].clip_norm / jnp.maximum(norm, 1e-30))
    clipped[label] = jax.tree.map(lambda g, clip=clip: g * clip.astype(g.dtype), part)

  moving = parts.moving(before)
  updates, opt_state = tx.update(parts.join(clipped), state.opt_state, moving, step=state.step)
  update_norms = {label: optax.tree.norm(part) for label, part in parts.split(updates).items()}
  finite = jnp.isfinite(loss)
  for norm in (*gradient_norms.values(), *update_norms.values()):
    finite &= jnp.isfinite(norm)

  params = merge(optax.apply_updates(moving, updates), before)
  decay = ema_decay(state.step, decay=config.ema_decay, warmup=config.ema_warmup)
  rng = example_keys(config.seed, state.step, purpose=AVERAGE, count=1)[0]
  ema = update_ema(state.ema, params, decay=decay, rng=rng)
  new = (params, ema, opt_state)
  old = (before, state.ema, state.opt_state)
  params, ema, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

  bad = 1 - finite.astype(jnp.int32)
  bad_steps = (state.bad_steps + 1) * bad
  metrics = metrics | {"loss": loss, "bad_steps": bad_steps}
  for label, own in parts.configs.items():
    suffix = "" if label == MAIN else f"_{label}"
    metrics |= {
      f"gradient_norm{suffix}": gradient_norms[label],
      f"update_norm{suffix}": update_norms[label],
      f"learning_rate{suffix}": learning_rate(own, state.step, steps=config.steps),
    }
  state = TrainState(
    step=state.step + 1,
    params=params,
    ema=ema,
    opt_state=opt_state,
    bad_steps=bad_steps,
    bad_total=state.bad_total + bad,
  )
  return state, {name: value.astype(jnp.float32) for name, value in metrics.items()}


def gradient(
  params: Params,
  batch: Batch,
  keys: jax.Array,
  *,
  stage: Stage,
  accumulate: int,
  moving: Callable[[Params], Params] = lambda params: params,
) -> tuple[jax.Array, Metrics, Params]:
  """Loss, metrics and gradient, as means over `accumulate` parts.

  The gradient is of what `moving` leaves of the parameters; it has None, too, for the others.
  Micro-batch i holds the examples i, i + accumulate, ...: with the batch split over devices, every
  device then has its share of each part and nothing moves between them.

  Raises:
    ValueError: the batch is not a multiple of `accumulate`.
  """

  def loss_of(some: Params, part: Batch, part_keys: jax.Array) -> tuple[jax.Array, Metrics]:
    return stage.loss(merge(some, params), part, part_keys)

  def one(part: Batch, part_keys: jax.Array) -> tuple[jax.Array, Metrics, Params]:
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
    (loss, metrics), gradients = value_and_grad(moving(params), part, part_keys)
    return loss, metrics, gradients

  if accumulate == 1:
    return one(batch, keys)
  if keys.shape[0] % accumulate:
    raise ValueError(f"a batch of {keys.shape[0]} is not a multiple of accumulate {accumulate}")

  def parts(array: jax.Array) -> jax.Array:
    split = array.reshape(array.shape[0] // accumulate, accumulate, *array.shape[1:])
    return jnp.swapaxes(split, 0, 1)

  def body(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, one(part[0], wrap(part[1]))), None

  wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(keys))
  # keys go in as their data: the check of key reuse takes a transposition of keys for a use
  pieces = jax.tree.map(parts, (dict(batch), jax.random.key_data(keys)))
  first = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct((a.shape[0] // accumulate, *a.shape[1:]), a.dtype),
    (dict(batch), keys),
  )
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, *first))
  total, _ = jax.lax.scan(body, zero, pieces)
  return jax.tree.map(lambda t: t / accumulate, total)


def eval_step(
  params: Params, batch: Batch, index: jax.Array, *, stage: Stage, config: TrainConfig
) -> Mapping[str, jax.Array]:
  """Held-out loss and metrics of batch number `index`, whose keys are the same at every step."""
  size = jax.tree.leaves(batch)[0].shape[0]
  keys = example_keys(config.seed, index, purpose=EVALUATE, count=size)
  loss, metrics = stage.loss(params, batch, keys)
  return metrics | {"loss": loss}
