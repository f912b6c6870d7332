"""The step of a real stage is the same on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained_run import experiment, params, stage

from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES, batch_shardings, state_shardings
from vidgen.nn.attention import AttentionConfig
from vidgen.train.state import TRAIN, example_keys
from vidgen.train.step import gradient

SIZE = 8


# frames, height and width in pixels: 32 tokens, and 9, which divide over nothing
SIZES = {"even": (8, 16, 16), "odd": (4, 12, 12)}


def batch(size):
  rng = np.random.default_rng(0)
  spec = stage().batch_spec(SIZE)
  text = rng.integers(3, 259, spec["text"].shape, dtype=np.int32)
  arrays = {
    "video": rng.uniform(-1, 1, (SIZE, *SIZES[size], 3)).astype(np.float32),
    "text": text,
    "text_mask": np.arange(text.shape[1]) < rng.integers(3, text.shape[1], (SIZE, 1)),
    "fps": np.full(SIZE, 4, np.float32),
  }
  return jax.tree.map(jnp.asarray, arrays)


def loss_and_gradient(weights, arrays, accumulate):
  keys = example_keys(experiment().train.seed, jnp.int32(3), purpose=TRAIN, count=SIZE)
  return gradient(weights, arrays, keys, stage=stage(), accumulate=accumulate)


@functools.cache
def alone(size):
  return jax.device_get(jax.jit(loss_and_gradient, static_argnums=2)(params(), batch(size), 1))


@pytest.mark.parametrize(
  ("count", "mesh_config", "accumulate", "size", "sequence"),
  [
    (1, MeshConfig(), 4, "even", "auto"),
    (2, MeshConfig(data=1, fsdp=2), 1, "even", "auto"),
    (4, MeshConfig(data=2, tensor=2), 2, "even", "auto"),
    (8, MeshConfig(data=8), 1, "even", "auto"),
    (8, MeshConfig(data=2, fsdp=2, tensor=2), 1, "even", "auto"),
    (8, MeshConfig(data=1, fsdp=8), 1, "odd", "auto"),
    (8, MeshConfig(data=2, fsdp=2, context=2), 1, "even", "auto"),
    (8, MeshConfig(data=1, fsdp=2, context=2, tensor=2), 1, "even", "gather"),
    (8, MeshConfig(data=1, fsdp=2, context=2, tensor=2), 1, "odd", "ring"),
    (4, MeshConfig(data=2, context=2), 1, "odd", "ulysses"),
    (8, MeshConfig(data=1, context=2, tensor=4), 1, "odd", "auto"),
  ],
)
def test_loss_and_gradient_do_not_depend_on_the_mesh(
  count, mesh_config, accumulate, size, sequence
):
  mesh = make_mesh(mesh_config, devices=jax.devices()[:count])
  layout = {"params": params(), "mesh": mesh, "rules": DEFAULT_RULES}
  shardings = state_shardings(params(), stage().logical_axes(), **layout)
  data = batch_shardings(stage().batch_spec(SIZE), mesh=mesh, rules=DEFAULT_RULES)
  attention = AttentionConfig(sequence=sequence)
  with on_mesh(mesh, rules=DEFAULT_RULES, attention=attention):
    program = jax.jit(loss_and_gradient, static_argnums=2, out_shardings=(None, None, shardings))
    arguments = jax.device_put(params(), shardings), jax.device_put(batch(size), data)
    loss, metrics, gradients = program(*arguments, accumulate)
  want_loss, want_metrics, want = alone(size)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, want_metrics[name], rtol=1e-4, err_msg=name)
  paths = jax.tree_util.tree_leaves_with_path(gradients)
  for (path, got), reference in zip(paths, jax.tree.leaves(want), strict=True):
    scale = np.abs(reference).max()  # relative to the array: its small entries are sums of large
    np.testing.assert_allclose(
      np.asarray(got), reference, rtol=1e-5, atol=1e-5 * scale + 1e-9, err_msg=str(path)
    )
