"""The device mesh: four axes, one of which may take the rest of the devices."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from vidgen.errors import ConfigError
from vidgen.nn.attention import AttentionConfig, Choices, attention_choices
from vidgen.nn.partition import Rules, activation_rules

AXES = ("data", "fsdp", "context", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices per mesh axis; -1, for at most one of them, means all that are left.

  data: copies of the parameters, each with its part of the batch.
  fsdp: the batch is split as over `data`, and so are the parameters.
  context: one sample's tokens are split.
  tensor: matrices are split, and the batch is not.
  """

  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = [getattr(self, axis) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes):
      raise ValueError(f"an axis is -1 or at least 1, got {dict(zip(AXES, sizes, strict=True))}")
    if sizes.count(-1) > 1:
      raise ValueError("only one axis can be -1")


def resolve_mesh(config: MeshConfig, device_count: int, *, slices: int = 1) -> dict[str, int]:
  """The size of every axis on `device_count` devices; the one place where -1 is resolved.

  With several slices, joined by a network slower than the links within, the config describes one
  slice, and `data` is that many times as large: only gradients cross the network, once for every
  micro-batch.

  Raises:
    ConfigError: the axes do not multiply to the number of devices.
  """
  sizes = {axis: getattr(config, axis) for axis in AXES}
  fixed = math.prod(size for size in sizes.values() if size != -1)
  rest, remainder = divmod(device_count, fixed * slices)
  if remainder or (rest != 1 and -1 not in sizes.values()):
    of = f" in {slices} slices" if slices > 1 else ""
    raise ConfigError(f"config.mesh: {sizes} does not divide {device_count} devices{of}")
  sizes = {axis: rest if size == -1 else size for axis, size in sizes.items()}
  return sizes | {"data": sizes["data"] * slices}


def slice_count(devices: Sequence[Any]) -> int:
  """How many TPU slices the devices are of; 1 for all else."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over `devices` (default: all of them), ordered by what is near on the hardware."""
  chosen = list(jax.devices() if devices is None else devices)
  slices = slice_count(chosen)
  sizes = resolve_mesh(config, len(chosen), slices=slices)
  split = {"allow_split_physical_axes": True}  # or few shapes would fit a torus
  if slices > 1:
    within = [sizes["data"] // slices, *(sizes[axis] for axis in AXES[1:])]
    across = [slices, *(1 for _ in AXES[1:])]
    array = mesh_utils.create_hybrid_device_mesh(within, across, chosen, **split)
  else:
    array = mesh_utils.create_device_mesh(tuple(sizes.values()), chosen, **split)
  return Mesh(array, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def on_mesh(
  mesh: Mesh, *, rules: Rules, attention: AttentionConfig | None = None
) -> Iterator[Choices]:
  """Where programs for `mesh` are traced and run: activations follow `rules`.

  Gives what `nn.attention.attention` picks, which is known after tracing. The mesh may be of
  devices that are not there.
  """
  platform = mesh.devices.flat[0].platform
  with (
    jax.set_mesh(mesh),
    activation_rules(rules),
    attention_choices(attention or AttentionConfig(), platform=platform) as choices,
  ):
    yield choices
