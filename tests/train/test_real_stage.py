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
from vidgen.systems import make_stage
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


# The autoencoder with every loss but LPIPS: noise and judged frames by the examples' keys.
AUTOENCODER = {
  "channels": [4, 8], "blocks": 1, "groups": 2, "latent_channels": 4, "dtype": "float32",
  "remat": "none", "perceptual_weight": 0.0, "kl_weight": 1e-2, "outlier_radius": 0.5,
  "judged_frames": 2, "discriminator": {"channels": 8, "layers": 1, "groups": 2},
  "buckets": [{"name": "video", "frames": 4, "height": 8, "width": 8}],
}  # fmt: skip


def losses_and_gradient(weights, video, accumulate):
  keys = example_keys(0, jnp.int32(3), purpose=TRAIN, count=SIZE)
  batch = {"video": video}
  return gradient(weights, batch, keys, stage=autoencoder(), accumulate=accumulate)


@functools.cache
def autoencoder():
  return make_stage("movie_gen/tae", AUTOENCODER)


@functools.cache
def autoencoder_alone():
  """Weights that mix frames, a batch, and what one device makes of them."""
  fresh = jax.jit(autoencoder().init)(jax.random.key(0))
  leaves, tree = jax.tree.flatten(jax.device_get(fresh))
  rng = np.random.default_rng(1)
  moved = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
  weights = jax.tree.unflatten(tree, moved)
  video = rng.uniform(-1, 1, (SIZE, 4, 8, 8, 3)).astype(np.float32)
  found = jax.jit(losses_and_gradient, static_argnums=2)(weights, video, 1)
  return weights, video, jax.device_get(found)


@pytest.mark.parametrize(
  ("mesh_config", "accumulate"),
  [(MeshConfig(data=2, fsdp=2, tensor=2), 1), (MeshConfig(data=1, fsdp=4, context=2), 2)],
)
def test_the_autoencoders_losses_and_gradients_do_not_depend_on_the_mesh(mesh_config, accumulate):
  weights, video, (want_loss, want_metrics, want) = autoencoder_alone()
  mesh = make_mesh(mesh_config, devices=jax.devices())
  layout = {"params": weights, "mesh": mesh, "rules": DEFAULT_RULES}
  shardings = state_shardings(weights, autoencoder().logical_axes(), **layout)
  data = batch_shardings(autoencoder().batch_spec(SIZE), mesh=mesh, rules=DEFAULT_RULES)
  with on_mesh(mesh, rules=DEFAULT_RULES, attention=AttentionConfig()):
    program = jax.jit(losses_and_gradient, static_argnums=2, out_shardings=(None, None, shardings))
    placed = jax.device_put(weights, shardings), jax.device_put(video, data["video"])
    loss, metrics, gradients = program(*placed, accumulate)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, want_metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)
  # What is zero but for rounding (the gradient of the bias of keys, which a softmax does not see)
  # is compared with the largest of all gradients; the others with their own array's largest.
  rounding = 1e-6 * max(np.abs(x).max() for x in jax.tree.leaves(want))
  paths = jax.tree_util.tree_leaves_with_path(gradients)
  for (path, got), reference in zip(paths, jax.tree.leaves(want), strict=True):
    scale = np.abs(reference).max()
    np.testing.assert_allclose(
      np.asarray(got), reference, rtol=1e-4, atol=1e-5 * scale + rounding, err_msg=str(path)
    )
