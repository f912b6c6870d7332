"""Optimizers: schedules, which parameters decay, groups, frozen ones, Muon's matrices; the EMA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidgen.errors import ConfigError
from vidgen.train.ema import ema_decay, stochastic_bfloat16, update_ema
from vidgen.train.experiment import OptimizerConfig
from vidgen.train.optimizer import learning_rate, make_optimizer, trainable

RNG = jax.random.key(0)  # of no use to a float32 average
PARAMS = {
  "blocks": {
    "kernel": jnp.ones((2, 4, 6)),
    "scale": jnp.ones((2, 4)),
    "out": jnp.ones((2, 2, 3, 4)),
  },
  "embedding": jnp.ones((5, 4)),
  "head": jnp.ones((4, 3)),
}
AXES = {
  "blocks": {
    "kernel": ("layers", "embed", "mlp"),
    "scale": ("layers", "embed"),
    "out": ("layers", "heads", "kv", "embed"),
  },
  "embedding": (None, "embed"),
  "head": ("embed", None),
}


def rates(steps, **fields):
  config = OptimizerConfig(learning_rate=1.0, **fields)
  return np.array([float(learning_rate(config, jnp.int32(s), steps=steps)) for s in range(steps)])


def update(config, gradients=None, *, step=0, params=PARAMS):
  config = OptimizerConfig(warmup_steps=0, **{"learning_rate": 1.0, **config})
  tx = make_optimizer(config, steps=100, params=params, axes=AXES)
  moving = trainable(params, frozen=config.frozen)
  gradients = trainable(gradients or jax.tree.map(jnp.ones_like, params), frozen=config.frozen)
  updates, _ = tx.update(gradients, tx.init(moving), moving, step=jnp.int32(step))
  return updates


def test_warmup_is_linear_and_reaches_the_peak():
  np.testing.assert_allclose(rates(8, warmup_steps=4)[:5], [0.25, 0.5, 0.75, 1, 1])


def test_each_decay_ends_where_it_says():
  linear = rates(11, warmup_steps=0, decay="linear", final_fraction=0.1)
  np.testing.assert_allclose(linear, np.linspace(1, 0.1, 11), rtol=1e-6)
  cosine = rates(11, warmup_steps=0, decay="cosine", final_fraction=0.2)
  assert cosine[0] == 1 and cosine[5] == pytest.approx(0.6) and cosine[10] == pytest.approx(0.2)
  wsd = rates(11, warmup_steps=0, decay="wsd", decay_fraction=0.4)
  np.testing.assert_allclose(wsd, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], atol=1e-6)
  assert set(rates(5, warmup_steps=0, decay="constant")) == {1.0}


def test_with_restarts_each_part_is_a_run_of_its_own():
  """Between two restarts, and from the last to the end, the rate is that of a run so long; after
  the last step it stays where it ended."""
  fields = {"warmup_steps": 2, "decay": "linear", "final_fraction": 0.1}
  found = rates(12, restarts=(3, 8), **fields)
  parts = [rates(length, **fields) for length in (3, 5, 4)]
  np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-6)
  config = OptimizerConfig(learning_rate=1.0, restarts=(3, 8), **fields)
  assert float(learning_rate(config, jnp.int32(20), steps=12)) == pytest.approx(0.1)


@pytest.mark.parametrize("restarts", [(0, 3), (3, 3), (5, 2), (-1,)])
def test_restarts_that_do_not_increase_are_refused(restarts):
  with pytest.raises(ValueError, match="restarts must increase from above 0"):
    OptimizerConfig(restarts=restarts)


def test_the_rate_follows_the_step_of_the_run():
  one = update({"decay": "linear"}, step=0)["head"]
  later = update({"decay": "linear"}, step=50)["head"]
  np.testing.assert_allclose(later, one * (49 / 99), rtol=1e-5)


def test_only_matrices_decay():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  updates = update({"weight_decay": 0.1}, zero)
  np.testing.assert_allclose(updates["blocks"]["kernel"], -0.1, rtol=1e-6)
  np.testing.assert_allclose(updates["head"], -0.1, rtol=1e-6)
  assert not np.any(updates["blocks"]["scale"])  # a vector of every layer
  assert not np.any(updates["embedding"])  # a table
  assert np.any(update({"weight_decay": 0.1, "vectors": ()}, zero)["embedding"])


def test_a_group_multiplies_the_learning_rate_of_what_its_pattern_finds_first():
  plain = update({})
  grouped = update({"groups": {"^blocks/kernel": 0.5, "^blocks": 0.1, "head": 0.0}})
  np.testing.assert_allclose(grouped["blocks"]["kernel"], plain["blocks"]["kernel"] * 0.5)
  np.testing.assert_allclose(grouped["blocks"]["scale"], plain["blocks"]["scale"] * 0.1)
  np.testing.assert_allclose(grouped["embedding"], plain["embedding"])
  assert not np.any(grouped["head"])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_frozen_parameters_get_no_update_and_no_state(name):
  config = OptimizerConfig(name=name, frozen=("^blocks",))
  tx = make_optimizer(config, steps=10, params=PARAMS, axes=AXES)
  state = tx.init(trainable(PARAMS, frozen=config.frozen))
  sizes = {leaf.size for leaf in jax.tree.leaves(state)}
  assert not sizes & {PARAMS["blocks"]["kernel"].size, PARAMS["blocks"]["out"].size}
  updates = update({"name": name, "frozen": ("^blocks",)})
  assert jax.tree.leaves(updates["blocks"]) == [] and np.any(updates["head"])


@pytest.mark.parametrize("key", ["frozen", "groups"])
def test_a_pattern_that_finds_nothing_is_refused(key):
  value = ("nothing_of_the_kind",) if key == "frozen" else {"nothing_of_the_kind": 2.0}
  with pytest.raises(ConfigError, match=f"{key}: 'nothing_of_the_kind' finds no parameter"):
    update({key: value})


def test_freezing_everything_is_refused():
  with pytest.raises(ConfigError, match="nothing is left to train"):
    update({"frozen": (".",)})


def test_adamw_is_optax_adamw():
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
  mask = {
    "blocks": {"kernel": True, "scale": False, "out": True}, "embedding": False, "head": True,
  }  # fmt: skip
  reference = optax.adamw(0.3, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.1, mask=mask)
  want, _ = reference.update(gradients, reference.init(PARAMS), PARAMS)
  fields = {"learning_rate": 0.3, "b1": 0.8, "b2": 0.9, "eps": 1e-6, "weight_decay": 0.1}
  got = update(fields, gradients)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_muon_makes_each_layer_an_orthogonal_matrix_of_its_own():
  rng = np.random.default_rng(0)
  gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)
  updates = update({"name": "muon"}, gradients)
  layers = np.asarray(updates["blocks"]["kernel"])
  for layer in layers:
    singular = np.linalg.svd(layer, compute_uv=False) / (0.2 * 6**0.5)
    # five iterations bring singular values near one, not onto it (Jordan 2024)
    assert singular.min() > 0.5 and singular.max() < 1.5
  heads = np.asarray(updates["blocks"]["out"]).reshape(2, 6, 4)  # heads and their size are one axis
  for layer in heads:
    singular = np.linalg.svd(layer, compute_uv=False) / (0.2 * 6**0.5)
    assert singular.min() > 0.5 and singular.max() < 1.5
  # a layer's update depends on its own gradient alone
  gradients["blocks"]["kernel"] = gradients["blocks"]["kernel"].at[1].set(0.0)
  again = np.asarray(update({"name": "muon"}, gradients)["blocks"]["kernel"])
  np.testing.assert_allclose(again[0], layers[0], rtol=1e-5)
  assert not np.any(again[1])


def test_muon_takes_a_convolution_for_one_matrix_from_its_window_to_a_result():
  config = OptimizerConfig(name="muon", learning_rate=1.0, warmup_steps=0)
  params = {"kernel": jnp.ones((3, 3, 2, 6))}
  axes = {"kernel": (None, None, "embed", "embed_out")}
  tx = make_optimizer(config, steps=100, params=params, axes=axes)
  gradients = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 6))}
  updates, _ = tx.update(gradients, tx.init(params), params, step=jnp.int32(0))
  matrix = np.asarray(updates["kernel"]).reshape(18, 6)
  singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 18**0.5)
  assert singular.min() > 0.5 and singular.max() < 1.5


def test_under_muon_vectors_and_tables_move_as_under_adam():
  muon, adam = update({"name": "muon"}), update({"name": "adamw"})
  for path in (("embedding",), ("blocks", "scale")):
    one, other = muon, adam
    for key in path:
      one, other = one[key], other[key]
    # the first step of Nesterov's Adam is a little longer than plain Adam's
    np.testing.assert_allclose(np.sign(one), np.sign(other))
    assert np.all(np.abs(one) / np.abs(other) < 2)


def test_the_average_has_its_closed_form():
  values = np.random.default_rng(0).normal(size=6).astype(np.float32)
  ema = {"w": jnp.float32(values[0])}
  for value in values[1:]:
    ema = update_ema(ema, {"w": jnp.float32(value)}, decay=jnp.float32(0.8), rng=RNG)
  weights = np.array([0.8**5, *(0.2 * 0.8**k for k in range(4, -1, -1))])
  assert float(ema["w"]) == pytest.approx(float(weights @ values), rel=1e-5)


def test_a_young_average_forgets_faster():
  decays = [float(ema_decay(jnp.int32(s), decay=0.9, warmup=10)) for s in (0, 10, 80, 81, 1000)]
  np.testing.assert_allclose(decays, [0.1, 0.55, 0.9, 0.9, 0.9], rtol=1e-6)
  assert float(ema_decay(jnp.int32(0), decay=0.9, warmup=1)) == pytest.approx(0.9)


def test_a_parameter_that_never_moves_keeps_its_average_bit_equal():
  value = {"w": jnp.float32([0.1, 1 / 3, 1e-30])}
  ema = value
  for _ in range(50):
    ema = update_ema(ema, value, decay=jnp.float32(0.999), rng=RNG)
  np.testing.assert_array_equal(ema["w"], value["w"])


def test_an_average_in_bfloat16_keeps_moving():
  """Steps of a 256th of what bfloat16 resolves: rounded to the nearest, it would stand still."""
  ema, params = {"w": jnp.ones(4096, jnp.bfloat16)}, {"w": jnp.full(4096, 2.0)}
  decay = jnp.float32(1 - 2**-15)
  update = jax.jit(update_ema)
  for step in range(256):
    rng = jax.random.fold_in(jax.random.key(1), step)
    ema = update(ema, params, decay=decay, rng=rng)
  want = 2 - (1 - 2**-15) ** 256  # 1.0078
  assert float(jnp.mean(ema["w"].astype(jnp.float32))) == pytest.approx(want, abs=5e-4)
  assert ema["w"].dtype == jnp.bfloat16


def test_stochastic_rounding_takes_one_of_the_neighbours():
  x = jnp.array([1.0, 1 + 2**-9, -1 - 2**-9, 3e38, jnp.inf, jnp.nan], jnp.float32)
  out = stochastic_bfloat16(jnp.broadcast_to(x, (1000, 6)), jax.random.key(0))
  out = np.asarray(out.astype(jnp.float32))
  assert set(out[:, 0]) == {1.0}  # what bfloat16 holds stays
  assert set(out[:, 1]) == {1.0, 1 + 2**-7} and set(out[:, 2]) == {-1.0, -1 - 2**-7}
  assert np.mean(out[:, 1]) == pytest.approx(1 + 2**-9, abs=1e-3)
  assert np.all(np.isinf(out[:, 4])) and np.all(np.isnan(out[:, 5]))
