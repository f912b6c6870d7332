"""The video U-Net over several devices: rows of a picture, batch, parameters and heads split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.dist.mesh import on_mesh
from vidgen.dist.rules import DEFAULT_RULES
from vidgen.models.video_unet import Level, VideoUNet
from vidgen.nn.partition import axes_of, partition_spec, unboxed

RULES = (*DEFAULT_RULES, ("rows", "context"))
INNER = Level(8, 1, stride=2, attention="self")
NETWORKS: Any = {
  "convolution": VideoUNet(levels=(Level(8, 1), INNER), text_width=6, head_size=4, groups=4),
  "attention": VideoUNet(
    levels=(Level(8, 1), INNER), text_width=6, head_size=4, groups=4, temporal="attention"
  ),
  "efficient": VideoUNet(
    levels=(Level(8, 1, stride=2), Level(8, 1, attention="cross")),
    text_width=6,
    low_channels=3,
    head_size=4,
    groups=0,
    remat="full",
  ),
}


def inputs(network: Any, *, rows: int) -> dict[str, Any]:
  rng = np.random.default_rng(0)
  video = jnp.asarray(rng.standard_normal((2, 3, rows, 4, 3)), jnp.float32)
  found = {
    "z": video,
    "level": jnp.asarray(rng.uniform(0, 1, (2, 3)), jnp.float32),
    "text": jnp.asarray(rng.standard_normal((2, 2, 4, 6)), jnp.float32),
    "text_mask": jnp.ones((2, 2, 4), bool).at[0, 0, 2:].set(False),
    "segments": jnp.asarray([[0, 0, 1], [0, 0, 0]], jnp.int32),
  }
  return found | ({"low": -video, "low_level": found["level"]} if network.low_channels else {})


@pytest.mark.parametrize(
  "name, rows, shape",
  [
    ("convolution", 16, (1, 1, 8, 1)),
    ("convolution", 12, (1, 1, 8, 1)),  # rows, and the positions of a frame, that do not divide
    ("attention", 16, (1, 1, 4, 2)),
    ("efficient", 16, (1, 2, 4, 1)),
  ],
)
def test_split_over_devices_the_network_and_its_gradient_are_the_same(name, rows, shape):
  """Rows go over "context": XLA exchanges those at the edges, and sums statistics of frames."""
  network, given = NETWORKS[name], inputs(NETWORKS[name], rows=rows)
  boxed = jax.eval_shape(network.init, jax.random.key(0), **given)["params"]
  rng = np.random.default_rng(0)

  def one(leaf):
    spread = 0.3 if leaf.ndim < 2 else np.prod(leaf.shape[:-1]) ** -0.5
    return jnp.asarray(spread * rng.standard_normal(leaf.shape) + (leaf.ndim < 2), jnp.float32)

  params = jax.tree.map(one, unboxed(boxed))

  def value(params, z):
    out = network.apply({"params": params}, **(given | {"z": z}))
    return jnp.mean(out**2), out

  compute = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
  expected = jax.jit(compute)(params, given["z"])

  mesh = jax.make_mesh(
    shape, ("data", "fsdp", "context", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 4
  )
  layout = lambda shape, axes: jax.sharding.NamedSharding(  # noqa: E731
    mesh, partition_spec(shape, axes, mesh=mesh.shape, rules=RULES)
  )
  split = jax.tree.map(lambda p, axes: layout(p.shape, axes), unboxed(boxed), axes_of(boxed))
  lying = layout(given["z"].shape, ("batch", "frames", "rows", None, None))
  assert rows % shape[2] or lying.spec[2] == "context"
  with on_mesh(mesh, rules=RULES):
    # a function of its own, traced here: jax keeps what it has traced by function
    found = jax.jit(lambda *args: compute(*args))(
      jax.device_put(params, split), jax.device_put(given["z"], lying)
    )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    scale = max(1e-3, float(np.abs(b).max()))
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4 * scale, rtol=0)
