"""The device mesh: four axes, one of which may take the rest of the devices."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from vidgen.errors import ConfigError

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


def resolve_mesh(config: MeshConfig, device_count: int) -> dict[str, int]:
  """The size of every axis on `device_count` devices; the one place where -1 is resolved.

  Raises:
    ConfigError: the axes do not multiply to the number of devices.
  """
  sizes = {axis: getattr(config, axis) for axis in AXES}
  fixed = math.prod(size for size in sizes.values() if size != -1)
  rest, remainder = divmod(device_count, fixed)
  if remainder or (rest != 1 and -1 not in sizes.values()):
    raise ConfigError(f"config.mesh: {sizes} does not divide {device_count} devices")
  return {axis: rest if size == -1 else size for axis, size in sizes.items()}


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """A mesh over `devices` (default: all of them), ordered by what is near on the hardware."""
  chosen = list(jax.devices() if devices is None else devices)
  sizes = resolve_mesh(config, len(chosen))
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
    devices=chosen,
  )
