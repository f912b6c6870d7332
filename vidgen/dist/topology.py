"""Devices that are not there: descriptions of TPU slices and GPU clusters to compile for.

TPUs need libtpu, GPUs jax's CUDA plugin, both from PyPI; no accelerator, no driver. A GPU's
compiler never says that memory does not suffice: whoever compiles compares the peak himself.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from vidgen.dist.devices import Device, device_named
from vidgen.errors import ConfigError

# What must be in the environment before jax looks for devices.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # several compilers at a time; none has a TPU to itself
  "TPU_SKIP_MDS_QUERY": "1",  # no metadata server is asked where this machine's TPUs are
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # libtpu asks for one; what is compiled for comes later
  "TPU_WORKER_HOSTNAMES": "localhost",
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # there is no driver to check
}

# Our name: libtpu's name, and what it must be told for one device a chip.
TPUS: dict[str, tuple[str, dict[str, Any]]] = {
  "v4": ("v4", {"chip_config_name": "megacore"}),
  "v5e": ("v5e", {}),
  "v5p": ("v5p", {}),
  "v6e": ("v6e", {}),
  "v7x": ("tpu7x", {}),
}

# What XLA wants to know of a GPU, beside the memory of `devices.DEVICES` (openxla/xla,
# xla/backends/gpu/target_config/specs): compute capability, multiprocessors, float32 units of one,
# shared memory of one and of a block, level 2 cache, clock in GHz.
_GPUS: dict[str, tuple[str, int, int, int, int, int, float]] = {
  "a100": ("major: 8 minor: 0", 108, 64, 167936, 166912, 41943040, 1.41),
  "h": (
    "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES",
    132, 128, 233472, 232448, 52428800, 1.98,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
  """So many devices of one kind; `name` is what `parse_topology` read."""

  name: str
  device: Device
  shape: tuple[int, ...]  # chips along the torus of a slice; GPUs: (count,)
  slices: int = 1

  @property
  def tpu(self) -> bool:
    """Whether these are TPUs."""
    return self.device.name in TPUS


def parse_topology(text: str) -> Topology:
  """Reads "v5p:4x4x8" (a slice by its chips), "2*v5p:4x4x8" (slices), "h100:128" (GPUs).

  Raises:
    ConfigError: says what is wrong with the text.
  """
  match = re.fullmatch(r"(?:(\d+)\*)?([a-z0-9-]+):(\d+(?:x\d+)*)", text)
  if not match:
    raise ConfigError(
      f"topology {text!r}: expected one like v5p:4x4x8, 2*v5p:4x4x8 (two slices) or h100:128"
    )
  slices, name = int(match[1] or 1), match[2]
  device = device_named(name)
  shape = tuple(int(side) for side in match[3].split("x"))
  topology = Topology(text, device, shape, slices)
  if min(*shape, slices) < 1:
    raise ConfigError(f"topology {text!r}: no devices")
  if topology.tpu and len(shape) != getattr(device.fabric, "dimensions", len(shape)):
    sides = " x ".join("abc"[: getattr(device.fabric, "dimensions", 0)])
    raise ConfigError(f"topology {text!r}: a {name} slice has sides {sides}")
  if not topology.tpu and (len(shape) > 1 or slices > 1):
    raise ConfigError(f"topology {text!r}: GPUs are counted: {name}:{math.prod(shape) * slices}")
  return topology


def absent_devices(topology: Topology) -> Sequence[Any]:
  """The devices of `topology` as jax knows them, to compile for; set `ENVIRONMENT` before.

  Raises:
    ConfigError: the compiler is not installed, or knows no such slice.
  """
  extra, module = ("plan-tpu", "libtpu") if topology.tpu else ("plan-gpu", "jax_cuda12_plugin")
  if importlib.util.find_spec(module) is None:
    raise ConfigError(
      f"{topology.name}: its compiler is not installed; pip install 'vidgen[{extra}]'"
    )
  from jax.experimental import topologies

  try:
    if topology.tpu:
      name, options = TPUS[topology.device.name]
      sides = "x".join(map(str, topology.shape))
      if topology.slices > 1:
        options = {**options, "num_slices": topology.slices}
      described = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{name}:{sides}", **options
      )
    else:
      count = topology.shape[0]
      each = min(count, getattr(topology.device.fabric, "domain", 8))
      if count % each:
        raise ConfigError(f"topology {topology.name!r}: machines have {each} GPUs")
      described = topologies.get_topology_desc(
        platform="cuda",
        topology_name="absent",
        target_config=_target(topology.device),
        topology=f"1x{count // each}x{each}",
      )
  except Exception as error:  # jaxlib raises RuntimeErrors of several kinds
    if isinstance(error, ConfigError):
      raise
    reason = str(error).splitlines()[0]
    raise ConfigError(f"topology {topology.name!r}: the compiler knows none: {reason}") from error
  return described.devices


def _target(device: Device) -> str:
  """The text of a GpuTargetConfigProto."""
  found = [value for start, value in _GPUS.items() if device.name.startswith(start)]
  if not found:
    raise ConfigError(f"{device.name}: no description of this GPU for the compiler")
  capability, cores, units, shared, block, cache, clock = found[0]
  return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {block} core_count: {cores} fpus_per_core: {units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {device.hbm_bandwidth:.0f} device_memory_size: {device.hbm_bytes:.0f}
  l2_cache_size: {cache} clock_rate_ghz: {clock} cuda_compute_capability {{ {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{device.kinds[0]}"
"""


def prepare_environment() -> None:
  """Sets `ENVIRONMENT`; of no use once jax has looked for devices."""
  os.environ.update(ENVIRONMENT)
