"""The train step: accumulation, device independence, the non-finite guard, freezing, clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_stage import FakeConfig, FakeStage

from vidgen.dist.mesh import MeshConfig, make_mesh
from vidgen.dist.rules import DEFAULT_RULES, batch_shardings, state_shardings
from vidgen.systems.stage import advanced
from vidgen.train.experiment import OptimizerConfig, TrainConfig
from vidgen.train.optimizer import make_optimizers
from vidgen.train.state import TRAIN, TrainState, example_keys, init_state
from vidgen.train.step import eval_step, gradient, train_step

STAGE = FakeStage(FakeConfig())


def config(*, optimizer=None, **fields):
  optimizer = {"learning_rate": 1e-2, "warmup_steps": 0, **(optimizer or {})}
  defaults = {"seed": 3, "steps": 10, "batch_size": 16, "ema_decay": 0.9}
  return TrainConfig(**{**defaults, **fields}, optimizer=OptimizerConfig(**optimizer))


def batch(size=16, seed=0, spec=None):
  rng = np.random.default_rng(seed)
  spec = spec or STAGE.batch_spec(size)
  text = rng.integers(3, 260, spec["text"].shape, dtype=np.int32)
  arrays = {
    "video": rng.uniform(-1, 1, spec["video"].shape).astype(np.float32),
    "text": text,
    "text_mask": np.ones(text.shape, np.bool_),
    "fps": np.full(size, 8, np.float32),
  }
  return jax.tree.map(jnp.asarray, arrays)


def setup(c):
  abstract = jax.eval_shape(STAGE.init, jax.random.key(0))
  tx = make_optimizers(c, params=abstract, axes=STAGE.logical_axes())
  state = init_state(c.seed, stage=STAGE, tx=tx)
  step = jax.jit(functools.partial(train_step, stage=STAGE, tx=tx, config=c))
  return state, step, tx


def run(c, steps=3):
  state, step, _ = setup(c)
  for s in range(steps):
    state, metrics = step(state, batch(seed=s))
  return state, metrics


def assert_equal(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_close(one, other, rtol=1e-5):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_large_batch(accumulate):
  params = STAGE.init(jax.random.key(1))
  keys = lambda: example_keys(3, jnp.int32(5), purpose=TRAIN, count=16)  # noqa: E731 (used twice)
  whole = gradient(params, batch(), keys(), stage=STAGE, accumulate=1)
  parts = gradient(params, batch(), keys(), stage=STAGE, accumulate=accumulate)
  assert_close(whole, parts)
  # the steps that follow from it
  one, _ = run(config())
  many, _ = run(config(accumulate=accumulate))
  assert_close(one.params, many.params, rtol=1e-4)  # Adam divides by small second moments


def test_an_uneven_accumulation_is_an_error():
  with pytest.raises(ValueError, match="not a multiple of accumulate 3"):
    keys = example_keys(0, jnp.int32(0), purpose=TRAIN, count=16)
    gradient(STAGE.init(jax.random.key(1)), batch(), keys, stage=STAGE, accumulate=3)
  with pytest.raises(ValueError, match="batch_size 16 is not a multiple of accumulate 5"):
    config(accumulate=5)


MESHES = [
  (2, MeshConfig(data=2)),
  (4, MeshConfig(data=1, fsdp=4)),
  (4, MeshConfig(data=2, tensor=2)),
  (8, MeshConfig(data=8)),
  (8, MeshConfig(data=2, fsdp=2, tensor=2)),
]


@pytest.mark.parametrize(
  ("count", "mesh_config", "name"),
  [(*mesh, "adamw") for mesh in MESHES] + [(*MESHES[-1], "adafactor"), (*MESHES[-1], "muon")],
)
def test_the_result_does_not_depend_on_the_mesh(count, mesh_config, name):
  c = config(optimizer={"name": name, "learning_rate": 1e-3}, accumulate=2)
  reference, reference_metrics = run(c)
  mesh = make_mesh(mesh_config, devices=jax.devices()[:count])
  state, _, tx = setup(c)
  shardings = state_shardings(
    jax.eval_shape(lambda: state), STAGE.logical_axes(), params=state.params, mesh=mesh,
    rules=DEFAULT_RULES,
  )  # fmt: skip
  data = batch_shardings(STAGE.batch_spec(16), mesh=mesh, rules=DEFAULT_RULES)
  step = jax.jit(
    functools.partial(train_step, stage=STAGE, tx=tx, config=c),
    in_shardings=(shardings, data),
    out_shardings=(shardings, None),
  )
  state = jax.device_put(state, shardings)
  for s in range(3):
    state, metrics = step(state, jax.device_put(batch(seed=s), data))
  assert len(state.params["head"]["kernel"].sharding.device_set) == count
  np.testing.assert_allclose(metrics["loss"], reference_metrics["loss"], rtol=1e-5)
  assert_close(state.params, reference.params, rtol=1e-4)  # Adam divides by small second moments


def test_noise_is_bit_equal_on_any_mesh():
  draw = lambda: jax.vmap(lambda k: jax.random.normal(k, (3,)))(  # noqa: E731 (a jitted one-liner)
    example_keys(7, jnp.int32(11), purpose=TRAIN, count=16)
  )
  alone = np.asarray(jax.jit(draw)())
  mesh = make_mesh(MeshConfig(data=8))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  np.testing.assert_array_equal(alone, np.asarray(jax.jit(draw, out_shardings=sharding)()))
  # and the first half of a larger batch is the smaller batch
  more = example_keys(7, jnp.int32(11), purpose=TRAIN, count=32)[:16]
  fewer = example_keys(7, jnp.int32(11), purpose=TRAIN, count=16)
  np.testing.assert_array_equal(jax.random.key_data(more), jax.random.key_data(fewer))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_step_changes_nothing_but_the_counters(value):
  state, step, _ = setup(config())
  state, _ = step(state, batch(seed=0))
  spoiled = batch(seed=1)
  spoiled["video"] = spoiled["video"].at[3].set(value)
  after, metrics = step(state, spoiled)
  assert_equal(
    (state.params, state.ema, state.opt_state), (after.params, after.ema, after.opt_state)
  )
  assert (int(after.step), int(after.bad_steps), int(after.bad_total)) == (2, 1, 1)
  assert float(metrics["bad_steps"]) == 1 and not np.isfinite(metrics["loss"])
  again, _ = step(after, spoiled)
  assert (int(again.bad_steps), int(again.bad_total)) == (2, 2)
  good, _ = step(again, batch(seed=2))
  assert (int(good.step), int(good.bad_steps), int(good.bad_total)) == (4, 0, 2)
  assert not np.array_equal(good.params["head"]["bias"], state.params["head"]["bias"])


class Advancing(FakeStage):
  """The fake stage with an array that no optimizer moves: at every second step, all embeddings."""

  @property
  def frozen(self):
    return ("^kept$",)

  def init(self, rng):
    made = super().init(rng)
    return {**made, "kept": jnp.zeros_like(made["embedding"])}

  def logical_axes(self):
    return {**super().logical_axes(), "kept": (None, "embed")}

  def predict(self, params, inputs):
    return super().predict(params, inputs) + params["kept"].mean()

  def advance(self, params, step):
    kept = jnp.where(step % 2 == 0, params["embedding"], params["kept"])
    return {**params, "kept": kept}


def test_what_a_stage_changes_by_step_is_changed_before_the_step():
  """The loss is of the changed parameters, no optimizer moves them, and they stay changed even
  where the step itself comes to nothing; a stage with nothing to change keeps its own."""
  stage, c = Advancing(FakeConfig()), config(optimizer={"weight_decay": 0.1})
  abstract = jax.eval_shape(stage.init, jax.random.key(0))
  tx = make_optimizers(c, params=abstract, axes=stage.logical_axes(), still=stage.frozen)
  first = init_state(c.seed, stage=stage, tx=tx)
  step = jax.jit(functools.partial(train_step, stage=stage, tx=tx, config=c))
  begun = first.params["embedding"]
  state, metrics = step(first, batch())
  np.testing.assert_array_equal(state.params["kept"], begun)
  assert np.abs(state.params["embedding"] - begun).max() > 1e-3
  keys = example_keys(c.seed, jnp.int32(0), purpose=TRAIN, count=16)
  loss, _ = stage.loss({**first.params, "kept": begun}, batch(), keys)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  state, _ = step(state, batch())
  np.testing.assert_array_equal(state.params["kept"], begun)

  embedding = state.params["embedding"]
  state, metrics = step(state, {**batch(), "video": batch()["video"] * np.nan})
  assert metrics["bad_steps"] == 1
  np.testing.assert_array_equal(state.params["embedding"], embedding)
  np.testing.assert_array_equal(state.params["kept"], embedding)
  assert advanced(STAGE, state.params, state.step) is state.params


def test_frozen_parameters_stay_bit_equal_and_have_no_optimizer_state():
  c = config(optimizer={"frozen": ("^embedding", "blocks/kernel"), "weight_decay": 0.1})
  start, _, _ = setup(c)
  state, _ = run(c)
  for tree in (state.params, state.ema):
    np.testing.assert_array_equal(tree["embedding"], start.params["embedding"])
    np.testing.assert_array_equal(tree["blocks"]["kernel"], start.params["blocks"]["kernel"])
  assert not np.array_equal(state.params["head"]["kernel"], start.params["head"]["kernel"])
  shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
  assert (260, 16) not in shapes and (2, 16, 16) not in shapes and (16, 48) in shapes


def test_the_gradient_norm_is_the_one_before_clipping_and_the_update_follows_the_clipped_one():
  params = STAGE.init(jax.random.key(1))
  abstract = jax.eval_shape(lambda: params)
  free = config(optimizer={"clip_norm": 1e9})
  tight = config(optimizer={"clip_norm": 1e-3})
  sgd = optax.with_extra_args_support(optax.sgd(1.0))
  zero = jnp.zeros((), jnp.int32)
  norms = []
  for c in (free, tight):
    state = TrainState(zero, params, params, sgd.init(abstract), zero, zero)
    _, metrics = train_step(state, batch(), stage=STAGE, tx=sgd, config=c)
    norms.append((float(metrics["gradient_norm"]), float(metrics["update_norm"])))
  assert norms[0][0] == norms[1][0] == pytest.approx(norms[0][1], rel=1e-6)
  assert norms[1][1] == pytest.approx(1e-3, rel=1e-5)


def test_held_out_loss_is_the_same_at_every_call_and_differs_by_batch():
  params = STAGE.init(jax.random.key(1))
  losses = [
    float(eval_step(params, batch(), jnp.int32(i), stage=STAGE, config=config())["loss"])
    for i in (0, 0, 1)
  ]
  assert losses[0] == losses[1] != losses[2]
