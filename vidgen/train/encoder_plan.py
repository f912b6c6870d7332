"""What a frozen text encoder will need on devices that are not there."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES, batch_shardings, state_shardings
from vidgen.dist.topology import Topology, absent_devices
from vidgen.errors import ConfigError
from vidgen.models.t5 import T5_SIZES, T5Encoder, t5_flops
from vidgen.nn.partition import axes_of, unboxed
from vidgen.systems.stage import ArraySpec
from vidgen.train.plan import Plan, bytes_of, compiled_figures


def plan_encoder(
  name: str,
  topology: Topology,
  *,
  length: int,
  batch_size: int | None = None,
  dtype: str = "bfloat16",
  sizes: Mapping[str, T5Encoder] = T5_SIZES,
) -> Plan:
  """Compiles the encoding of `batch_size` texts (by default one a device) of `length` tokens.

  Parameters are in `dtype` and lie over all devices of a slice, as texts do: the report splits the
  encoder by FSDP alone (Movie Gen, section 3.1.6).

  Raises:
    ConfigError: no such encoder, the compiler is missing, or texts do not divide over the devices.
  """
  if name not in sizes:
    raise ConfigError(f"--encoder {name!r}: known are {', '.join(sizes)}")
  begin = time.monotonic()
  network = sizes[name].clone(dtype=dtype)
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1), devices=absent_devices(topology))
  count = batch_size or mesh.devices.size
  variables = jax.eval_shape(network.init, jax.random.key(0), *network.example())["params"]
  shapes = unboxed(variables)
  shardings = state_shardings(
    shapes, axes_of(variables), params=shapes, mesh=mesh, rules=DEFAULT_RULES
  )
  params = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=s),
    shapes,
    shardings,
  )
  spec = {
    key: ArraySpec((count, length), kind, ("batch", None))
    for key, kind in (("ids", jnp.int32), ("mask", jnp.bool_))
  }
  layout = batch_shardings(spec, mesh=mesh, rules=DEFAULT_RULES)
  inputs = {key: array.struct(layout[key]) for key, array in spec.items()}

  def encode(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    found: Any = network.apply({"params": params}, ids, mask)
    return found["tokens"]

  with on_mesh(mesh, rules=DEFAULT_RULES) as choices:
    traced = jax.jit(encode).trace(params, inputs["ids"], inputs["mask"])
    figures = compiled_figures(
      traced,
      mesh=mesh,
      topology=topology,
      model_flops=lambda: t5_flops(network, length=length, batch=count),
    )
  return Plan(
    name=name,
    topology=topology.name,
    devices=mesh.devices.size,
    program="encode",
    bucket=f"{length} tokens",
    batch_size=count,
    accumulate=1,
    mesh=dict(mesh.shape),
    remat="",
    attention=dict(choices.picked),
    parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes)),
    state_bytes_per_device={"parameters": bytes_of(params)},
    compile_seconds=time.monotonic() - begin,
    **figures,
  )
