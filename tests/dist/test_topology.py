"""Topologies: what a name means, and what is said of one that means nothing."""

import importlib.util
import math

import jax
import pytest

from vidgen.dist import topology as module
from vidgen.dist.devices import DEVICES
from vidgen.dist.mesh import MeshConfig, make_mesh
from vidgen.dist.topology import absent_devices, parse_topology
from vidgen.errors import ConfigError

TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
GPU = pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs jax's CUDA plugin"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  for name, value in module.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
  ("text", "name", "shape", "slices"),
  [
    ("v5p:4x4x8", "v5p", (4, 4, 8), 1),
    ("2*v5p:4x4x8", "v5p", (4, 4, 8), 2),
    ("v6e:16x16", "v6e", (16, 16), 1),
    ("h100:128", "h100", (128,), 1),
  ],
)
def test_names(text, name, shape, slices):
  topology = parse_topology(text)
  assert (topology.device.name, topology.shape, topology.slices) == (name, shape, slices)
  assert topology.tpu == text.lstrip("2*").startswith("v")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("v5p", "expected one like v5p:4x4x8"),
    ("v5p:4x4", "a v5p slice has sides a x b x c"),
    ("v5e:4x4x4", "a v5e slice has sides a x b"),
    ("v9:4x4", "v9"),
    ("h100:8x16", "GPUs are counted: h100:128"),
    ("0*v5e:4x4", "no devices"),
    ("$(reboot):8", "expected one like"),
  ],
)
def test_names_that_mean_nothing(text, message):
  with pytest.raises(ConfigError, match="topology|accelerator|device") as caught:
    parse_topology(text)
  assert message in str(caught.value)


@pytest.mark.parametrize(("text", "extra"), [("v5e:2x2", "plan-tpu"), ("a100-80gb:8", "plan-gpu")])
def test_a_compiler_that_is_not_installed_is_named(text, extra, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=rf"pip install 'vidgen\[{extra}\]'"):
    absent_devices(parse_topology(text))


@TPU
@pytest.mark.parametrize("text", ["v4:2x2x2", "v5e:4x4", "v5p:2x2x2", "v6e:4x4", "v7x:2x2x1"])
def test_every_tpu_has_its_devices(text):
  topology = parse_topology(text)
  devices = absent_devices(topology)
  each = getattr(topology.device.fabric, "devices_per_chip", 1)
  assert len(devices) == math.prod(topology.shape) * each
  assert devices[0].device_kind.startswith(topology.device.kinds)


@TPU
def test_data_goes_over_the_slices_and_the_rest_stays_within():
  devices = absent_devices(parse_topology("2*v5e:4x4"))
  mesh = make_mesh(MeshConfig(data=1, fsdp=-1, context=2, tensor=2), devices=devices)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "context": 2, "tensor": 2}
  for index in range(2):
    assert {device.slice_index for device in mesh.devices[index].flat} == {index}


@TPU
def test_a_slice_that_there_is_not_is_refused():
  with pytest.raises(ConfigError, match="v5e:3x5"):
    absent_devices(parse_topology("v5e:3x5"))


@GPU
@pytest.mark.parametrize("name", ["a100-40gb", "a100-80gb", "h100", "h200"])
def test_every_gpu_has_its_devices(name):
  devices = absent_devices(parse_topology(f"{name}:16"))
  known = next(device for device in DEVICES if device.name == name)
  assert len(devices) == 16 and devices[0].device_kind.startswith(known.kinds)
  assert jax.devices()[0].platform == "cpu"


def test_gpus_fill_machines():
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    pytest.skip("needs jax's CUDA plugin")
  with pytest.raises(ConfigError, match="machines have 8 GPUs"):
    absent_devices(parse_topology("h100:12"))
