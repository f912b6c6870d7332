"""The upsampler's loss, gradients and windowed samples are the same on one device and on eight."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES, batch_shardings, state_shardings
from vidgen.systems import SampleSettings, make_stage
from vidgen.systems.sampling import sample_keys
from vidgen.train.state import TRAIN, example_keys
from vidgen.train.step import gradient

SIZE = 4
FIELDS = {
  "layers": 1, "width": 32, "heads": 4, "mlp_width": 32, "max_grid": (3, 2, 2),
  "latent": {"channels": 2, "temporal_stride": 1}, "overlap": 1, "condition_noise": 0.1,
  "text_streams": {"ul2": {"width": 6, "length": 3}}, "dtype": "float32", "remat": "none",
  "buckets": [{"name": "video", "frames": 3, "height": 24, "width": 32}],  # 3 rows of latents
}  # fmt: skip
SETTINGS = SampleSettings(steps=2, guidance_scale=2.0, schedule="linear")


def test_the_upsampler_does_not_depend_on_the_mesh():
  """Loss and gradients of a batch, and samples of 7 frames in windows of 3: on a mesh with the
  batch, the parameters, the tokens and the heads split, they are those of one device."""
  stage = make_stage("movie_gen/upsampler", FIELDS)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(stage.init, jax.random.key(0))
  params = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes)
  spec = stage.batch_spec(SIZE)
  batch: dict[str, Any] = {
    n: rng.standard_normal(x.shape).astype(np.float32) for n, x in spec.items()
  }
  batch["ul2_mask"] = np.arange(3) < rng.integers(1, 4, (SIZE, 1))
  long = {**batch, "condition": rng.standard_normal((SIZE, 7, 3, 4, 2)).astype(np.float32)}

  def everything(params, batch, long):
    keys = example_keys(0, jnp.int32(3), purpose=TRAIN, count=SIZE)
    loss, _, gradients = gradient(params, batch, keys, stage=stage, accumulate=1)
    made = stage.sample(params, long, sample_keys(1, jnp.arange(SIZE)), SETTINGS)
    return loss, gradients, made["latents"]

  wanted = jax.device_get(jax.jit(everything)(params, batch, long))
  mesh = make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2), devices=jax.devices()[:8])
  layout = {"params": params, "mesh": mesh, "rules": DEFAULT_RULES}
  placed = jax.device_put(params, state_shardings(params, stage.logical_axes(), **layout))
  rows = batch_shardings(spec, mesh=mesh, rules=DEFAULT_RULES)
  with on_mesh(mesh, rules=DEFAULT_RULES):
    got = jax.jit(everything)(placed, jax.device_put(batch, rows), jax.device_put(long, rows))
  paths = jax.tree_util.tree_leaves_with_path(jax.device_get(got))
  for (path, array), reference in zip(paths, jax.tree.leaves(wanted), strict=True):
    scale = np.abs(reference).max()
    np.testing.assert_allclose(array, reference, rtol=1e-4, atol=2e-5 * scale, err_msg=str(path))
