"""Loss and gradients of Imagen Video's models are the same on one device and on eight."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.config import load_config
from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import batch_shardings, state_shardings
from vidgen.systems import make_stage
from vidgen.train.experiment import resolve
from vidgen.train.state import TRAIN, example_keys
from vidgen.train.step import gradient

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "imagen_video" / "ssr.py"
SIZE = 8
NETWORK = {"embedding": 16, "head_size": 8, "groups": 0, "residual": "plain", "scan": False}
SHAPE = {"name": "video", "frames": 2, "height": 8, "width": 4}
FIELDS = {
  # rows of packs of a clip and an image; positions, and the frames of a clip, see one another
  "base": {
    "network": {
      **NETWORK, "levels": [{"channels": 16, "blocks": 1, "attention": "self"}],
      "temporal": "attention",
    },
    "buckets": [{**SHAPE, "images": 1}],
  },
  # a network that halves the sides, reads the text, and mixes frames by convolutions
  "spatial": {
    "network": {
      **NETWORK, "levels": [{"channels": 16, "blocks": 1, "stride": 2, "attention": "cross"}],
      "temporal": "convolution",
    },
    "buckets": [SHAPE], "role": "spatial", "factor": 2,
  },
}  # fmt: skip


@functools.cache
def stage(role):
  streams = {"t5": {"width": 6, "length": 3}}
  fixed = {"text_streams": streams, "dtype": "float32", "remat": "none"}
  return make_stage("imagen_video", {**fixed, **FIELDS[role]})


def loss_and_gradient(params, batch, *, role):
  keys = example_keys(0, jnp.int32(3), purpose=TRAIN, count=SIZE)
  return gradient(params, batch, keys, stage=stage(role), accumulate=1)


@functools.cache
def alone(role):
  """Parameters none of which is zero, a batch, and what one device makes of them."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(stage(role).init, jax.random.key(0))
  params = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes)
  spec = stage(role).batch_spec(SIZE)
  batch: dict[str, Any] = {
    n: rng.uniform(-1, 1, x.shape).astype(np.float32) for n, x in spec.items()
  }
  mask = spec["t5_mask"].shape
  batch["t5_mask"] = np.arange(3) < rng.integers(1, 4, (*mask[:-1], 1))
  if "segments" in batch:
    batch["segments"] = np.tile(np.array([0, 0, 1], np.int32), (SIZE, 1))
  found = jax.jit(functools.partial(loss_and_gradient, role=role))(params, batch)
  return params, batch, jax.device_get(found)


@pytest.mark.parametrize(
  "mesh_config",
  [
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=2, context=2, tensor=2),
    MeshConfig(data=2, context=4),
  ],
  ids=["data", "all", "rows"],
)
@pytest.mark.parametrize("role", FIELDS)
def test_loss_and_gradients_do_not_depend_on_the_mesh(role, mesh_config):
  """Under the shipped rules, by which the rows of a frame are split over "context"."""
  rules = resolve(load_config(f"{CONFIG}:tiny1")).rules
  assert ("rows", "context") in rules
  params, batch, (want_loss, want_metrics, want) = alone(role)
  mesh = make_mesh(mesh_config, devices=jax.devices())
  layout = {"params": params, "mesh": mesh, "rules": rules}
  shardings = state_shardings(params, stage(role).logical_axes(), **layout)
  data = batch_shardings(stage(role).batch_spec(SIZE), mesh=mesh, rules=rules)
  with on_mesh(mesh, rules=rules):
    program = jax.jit(
      functools.partial(loss_and_gradient, role=role), out_shardings=(None, None, shardings)
    )
    found = program(jax.device_put(params, shardings), jax.device_put(batch, data))
  loss, metrics, gradients = found
  np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, want_metrics[name], rtol=1e-5, err_msg=name)
  # The sinusoids of a noise level, of up to 1000 radians, enlarge its rounding, and what a softmax
  # or a norm does not see is all rounding: so beside an array's own largest there is all arrays'.
  rounding = 3e-6 * max(np.abs(x).max() for x in jax.tree.leaves(want))
  paths = jax.tree_util.tree_leaves_with_path(gradients)
  for (path, got), reference in zip(paths, jax.tree.leaves(want), strict=True):
    scale = np.abs(reference).max()
    np.testing.assert_allclose(
      np.asarray(got), reference, rtol=0, atol=1e-5 * scale + rounding, err_msg=str(path)
    )
