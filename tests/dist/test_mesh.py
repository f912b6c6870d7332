"""The mesh: -1 is resolved once, and what does not divide is refused."""

import jax
import pytest

from vidgen.dist.mesh import MeshConfig, make_mesh, resolve_mesh
from vidgen.errors import ConfigError


@pytest.mark.parametrize(
  ("config", "count", "sizes"),
  [
    (MeshConfig(), 8, (8, 1, 1, 1)),
    (MeshConfig(data=2, fsdp=-1, tensor=2), 8, (2, 2, 1, 2)),
    (MeshConfig(data=1, context=-1), 6, (1, 1, 6, 1)),
    (MeshConfig(data=1), 1, (1, 1, 1, 1)),
  ],
)
def test_the_rest_of_the_devices_goes_to_the_axis_of_minus_one(config, count, sizes):
  assert tuple(resolve_mesh(config, count).values()) == sizes


@pytest.mark.parametrize(
  ("config", "count"),
  [
    (MeshConfig(data=3), 8),
    (MeshConfig(data=-1, tensor=3), 8),
    (MeshConfig(data=2), 8),
    (MeshConfig(data=16), 8),
  ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(config, count):
  with pytest.raises(ConfigError, match=f"does not divide {count} devices"):
    resolve_mesh(config, count)


def test_axis_sizes_are_checked():
  with pytest.raises(ValueError, match="only one axis"):
    MeshConfig(data=-1, fsdp=-1)
  with pytest.raises(ValueError, match="at least 1"):
    MeshConfig(data=0)


def test_a_mesh_has_every_device_once_and_lets_the_compiler_place_what_no_rule_does():
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
  assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in jax.devices())
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
