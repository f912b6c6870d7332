"""Several optimizers in one run: each moves its own parameters and knows nothing of the others."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_run import FakeData, experiment, run
from fake_stage import FakeConfig, FakeStage

from vidgen.config import plain
from vidgen.dist.mesh import MeshConfig, make_mesh
from vidgen.dist.rules import DEFAULT_RULES, path_name, state_shardings
from vidgen.errors import ConfigError
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import OptimizerConfig, TrainConfig, from_plain
from vidgen.train.optimizer import make_optimizers
from vidgen.train.state import init_state
from vidgen.train.step import train_step

STAGE = FakeStage(FakeConfig())
BODY = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, clip_norm=0.05)
HEAD = OptimizerConfig(
  name="adafactor", learning_rate=3e-2, warmup_steps=4, clip_norm=0.01, frozen=("head/bias",)
)
PATTERN = "^head/"


def config(**fields):
  return TrainConfig(**{"steps": 8, "batch_size": 4, "optimizer": BODY, **fields})


def prepared(c, stage=STAGE):
  params = jax.eval_shape(stage.init, jax.random.key(0))
  tx = make_optimizers(c, params=params, axes=stage.logical_axes(), still=stage.frozen)
  state = init_state(c.seed, stage=stage, tx=tx)
  return state, jax.jit(functools.partial(train_step, stage=stage, tx=tx, config=c))


def after(c, *, steps=2, stage=STAGE):
  state, step = prepared(c, stage)
  data, metrics = FakeData(experiment(batch_size=4)), {}
  for _ in range(steps):
    state, metrics = step(state, jax.tree.map(jnp.asarray, next(data)))
  return jax.device_get((state, metrics))


def leaves(tree):
  return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_equal(one, other):
  assert set(one) == set(other)
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_each_part_moves_as_if_the_others_had_been_frozen():
  """Its own rule, rate, warm-up and frozen names, and a clip by the norm of its own gradient."""
  both, metrics = after(config(optimizers={PATTERN: HEAD}), steps=1)
  head, of_head = after(config(optimizer=dataclasses.replace(
    HEAD, frozen=("head/bias", "blocks", "embedding"))), steps=1)  # fmt: skip
  body, of_body = after(config(optimizer=dataclasses.replace(BODY, frozen=("head",))), steps=1)
  for part, alone in {"main": body, "head": head}.items():
    assert_equal(leaves(both.opt_state[part]), leaves(alone.opt_state))
  assert_equal(leaves(both.params["head"]), leaves(head.params["head"]))
  assert_equal(leaves(both.params["blocks"]), leaves(body.params["blocks"]))
  for name in ("gradient_norm", "update_norm", "learning_rate"):
    assert metrics[name] == of_body[name] and metrics[f"{name}_head"] == of_head[name]
  # the test bites: both norms are above their clips, and a common one would be another
  assert metrics["gradient_norm"] > BODY.clip_norm
  assert metrics["gradient_norm_head"] > HEAD.clip_norm


def test_a_step_of_one_part_leaves_no_trace_in_the_moments_of_another():
  states = [
    after(config(optimizers={PATTERN: dataclasses.replace(HEAD, learning_rate=rate)}), steps=1)[0]
    for rate in (1e-3, 1.0)
  ]
  assert_equal(*(leaves(s.opt_state["main"]) for s in states))
  assert_equal(*(leaves({k: v for k, v in s.params.items() if k != "head"}) for s in states))
  kernels = [s.params["head"]["kernel"] for s in states]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_parts_of_equal_optimizers_are_one_but_for_the_clip():
  free = dataclasses.replace(BODY, clip_norm=1e9)
  parted, metrics = after(config(optimizer=free, optimizers={PATTERN: free}))
  whole, of_whole = after(config(optimizer=free))
  assert_equal(leaves(parted.params), leaves(whole.params))
  norm = math.hypot(metrics["gradient_norm"], metrics["gradient_norm_head"])
  assert norm == pytest.approx(of_whole["gradient_norm"], rel=1e-6)


@pytest.mark.parametrize(
  ("optimizers", "message"),
  [
    (("^tail/",), "config.train.optimizers.^tail/: finds no parameter"),
    (("head", "kernel"), "'head' and 'kernel' both find head/kernel"),
    (("head|blocks|embedding",), "config.train.optimizer: finds no parameter"),
  ],
)
def test_regexes_that_do_not_divide_the_parameters_are_an_error(optimizers, message):
  with pytest.raises(ConfigError, match=re.escape(message)):
    prepared(config(optimizers=dict.fromkeys(optimizers, BODY)))


def test_errors_name_the_part():
  message = "config.train.optimizers.^head/.frozen: 'blocks' finds no parameter"
  with pytest.raises(ConfigError, match=re.escape(message)):
    prepared(config(optimizers={PATTERN: OptimizerConfig(frozen=("blocks",))}))
  with pytest.raises(ConfigError, match="config.train.optimizers.*nothing is left"):
    prepared(config(optimizers={PATTERN: OptimizerConfig(frozen=("head",))}))
  with pytest.raises(ValueError, match="no regular expression"):
    config(optimizers={"(": BODY})
  with pytest.raises(ValueError, match="no words of their own"):
    config(optimizers={"^head/": BODY, "head": BODY})


class Still(FakeStage):
  """A stage whose embedding does not train."""

  frozen = ("^embedding",)


def test_what_a_stage_freezes_stays_bit_equal_and_has_no_moments():
  c = config(optimizer=dataclasses.replace(BODY, weight_decay=0.5, vectors=()))
  still, moving = after(c, stage=Still(FakeConfig()))[0], after(c)[0]
  fresh = STAGE.init(jax.random.key(0)), prepared(c, Still(FakeConfig()))[0].params
  np.testing.assert_array_equal(still.params["embedding"], fresh[1]["embedding"])
  assert np.abs(moving.params["embedding"] - fresh[1]["embedding"]).max() > 1e-3
  assert not any("embedding" in name for name in leaves(still.opt_state))
  assert any("embedding" in name for name in leaves(moving.opt_state))


def test_the_moments_of_every_part_lie_as_their_parameters_do():
  c = config(optimizers={PATTERN: BODY})
  state = jax.eval_shape(lambda: prepared(c)[0])
  mesh = make_mesh(MeshConfig(data=1, fsdp=8), devices=jax.devices())
  params = jax.eval_shape(STAGE.init, jax.random.key(0))
  specs = leaves(
    state_shardings(
      state, STAGE.logical_axes(), params=params, mesh=mesh, rules=DEFAULT_RULES
    ).opt_state
  )
  split = {name for name, sharding in specs.items() if not sharding.is_fully_replicated}
  matrices = [
    f"main/0/{m}/{n}" for m in ("mu", "nu") for n in ("blocks/kernel", "blocks/bias", "embedding")
  ]
  assert split == {*matrices, "head/0/mu/head/kernel", "head/0/nu/head/kernel"}


def test_a_run_with_parts_goes_on_bit_equal(tmp_path):
  one = experiment(steps=4, save_every=2, eval_every=0, optimizers={PATTERN: HEAD})
  run(one, tmp_path / "unbroken")
  run(dataclasses.replace(one, train=dataclasses.replace(one.train, steps=2)), tmp_path / "broken")
  run(one, tmp_path / "broken")
  logs = [(tmp_path / name / "train.jsonl").read_bytes() for name in ("unbroken", "broken")]
  assert logs[0] == logs[1] and b"gradient_norm_head" in logs[0]
  digests = []
  for name in ("unbroken", "broken"):
    checkpoints = Checkpoints(tmp_path / name / "checkpoints")
    digests.append(checkpoints.digests(4))
    checkpoints.close()
  assert digests[0] == digests[1]


def test_a_config_with_parts_survives_its_file():
  one = experiment(optimizers={PATTERN: HEAD})
  tree = plain(one)
  tree["stage"]["name"] = "movie_gen/tae"
  assert from_plain(tree).train == one.train
