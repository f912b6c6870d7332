"""What one JAX device can do at most, as its maker states it: the one table of accelerators.

An unknown device has no peak here, and then no utilisation is reported; a run states its own with
`train.peak_flops`. Bandwidths are one way. A number is an upper bound: what a program reaches of
it is measured, not listed.
"""

import dataclasses

from vidgen.errors import ConfigError

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Ici:
  """A TPU slice's torus: every chip has two links in each of `dimensions`, one each way round.

  link_bandwidth: bytes/s one way of one link. wrap: a side of the slice closes to a ring when it is
  a multiple of this; else it is a line. devices_per_chip: JAX devices that share a chip's links.
  chip_bandwidth: bytes/s one way between two devices of a chip.
  """

  link_bandwidth: float
  dimensions: int
  wrap: int
  devices_per_chip: int = 1
  chip_bandwidth: float = 0.0


@dataclasses.dataclass(frozen=True)
class NvLink:
  """A switch that joins `domain` GPUs, each with `bandwidth` bytes/s one way into it."""

  bandwidth: float
  domain: int = 8


@dataclasses.dataclass(frozen=True)
class Device:
  """One JAX device.

  name: as the planner knows it. kinds: beginnings of `jax.Device.device_kind`. flops: dense bf16
  FLOP/s. hbm_bytes: memory that a program can have. hbm_bandwidth: bytes/s. fabric: what joins it
  to its neighbours; None where this table does not say. network: bytes/s one way of its share of
  the network between slices or NVLink domains; 0 where this table does not say. source: in words.
  """

  name: str
  kinds: tuple[str, ...]
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  fabric: Ici | NvLink | None
  network: float
  source: str


# Memory of TPUs is what libtpu 0.0.42 tells a program that asks for more ("exceeds available HBM"),
# per device; that of GPUs is what CUDA reports (openxla/xla, gpu/target_config/specs), of which the
# process may reserve less. NVIDIA prints FLOP/s with sparsity, and NVLink both ways: half is here.
# The first match of `kinds` counts, so longer names come first.
DEVICES = (
  Device(
    "v2",
    ("TPU v2",),
    flops=22.5e12,
    hbm_bytes=8 * GIB,
    hbm_bandwidth=350e9,
    fabric=None,
    network=0.0,
    source="cloud.google.com/tpu/docs/v2: 45 TFLOP/s, 16 GiB, 700 GB/s a chip of two devices",
  ),
  Device(
    "v3",
    ("TPU v3",),
    flops=61.5e12,
    hbm_bytes=16 * GIB,
    hbm_bandwidth=450e9,
    fabric=None,
    network=0.0,
    source="cloud.google.com/tpu/docs/v3: 123 TFLOP/s, 32 GiB, 900 GB/s a chip of two devices",
  ),
  Device(
    "v4i",
    ("TPU v4 lite",),
    flops=138e12,
    hbm_bytes=8 * GIB,
    hbm_bandwidth=614e9,
    fabric=None,
    network=0.0,
    source="Jouppi et al. 2021, Ten lessons, table 1",
  ),
  Device(  # a chip; a topology without megacore splits it in two devices
    "v4",
    ("TPU v4",),
    flops=275e12,
    hbm_bytes=30.75 * GIB,
    hbm_bandwidth=1200e9,
    fabric=Ici(45e9, dimensions=3, wrap=4),
    network=6.25e9,
    source="cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 1200 GB/s, 3D; links, and 25 GB/s a host of"
    " 4 chips: jax-ml.github.io/scaling-book, Part 2",
  ),
  Device(
    "v5e",
    ("TPU v5 lite", "TPU v5e"),
    flops=197e12,
    hbm_bytes=15.75 * GIB,
    hbm_bandwidth=819e9,
    fabric=Ici(50e9, dimensions=2, wrap=16),
    network=3.125e9,
    source="cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 819 GB/s, 400 GB/s ICI over 4 ports both"
    " ways, 2 NICs of 100 Gb/s a host of 8; wrap: scaling-book, Part 2",
  ),
  Device(
    "v5p",
    ("TPU v5",),
    flops=459e12,
    hbm_bytes=95.74 * GIB,
    hbm_bandwidth=2765e9,
    fabric=Ici(100e9, dimensions=3, wrap=4),
    network=6.25e9,
    source="cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 2765 GB/s, 1200 GB/s ICI over 6 ports both"
    " ways, 50 Gb/s DCN a chip; wrap: scaling-book, Part 2",
  ),
  Device(
    "v6e",
    ("TPU v6 lite", "TPU v6e"),
    flops=918e12,
    hbm_bytes=31.25 * GIB,
    hbm_bandwidth=1638e9,
    fabric=Ici(100e9, dimensions=2, wrap=16),
    network=12.5e9,
    source="cloud.google.com/tpu/docs/tpu7x, column v6e: 918 TFLOP/s, 1638 GB/s, 800 GB/s ICI over"
    " 4 ports both ways, 100 Gb/s DCN a chip; wrap: scaling-book, Part 2",
  ),
  Device(
    "v7x",
    ("TPU7x", "TPU v7x"),
    flops=1153.5e12,
    hbm_bytes=94.75 * GIB,
    hbm_bandwidth=3690e9,
    fabric=Ici(100e9, dimensions=3, wrap=4, devices_per_chip=2, chip_bandwidth=600e9),
    network=6.25e9,
    source="cloud.google.com/tpu/docs/tpu7x, for a chip of two devices: 2307 TFLOP/s, 7380 GB/s,"
    " 1200 GB/s ICI over 6 ports both ways, 100 Gb/s DCN; wrap as v5p; that the two devices have"
    " six links' worth between them is an assumption",
  ),
  Device(
    "a100-80gb",
    ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM-80GB"),
    flops=312e12,
    hbm_bytes=85_100_068_864.0,
    hbm_bandwidth=2039e9,
    fabric=NvLink(300e9),
    network=25e9,
    source="NVIDIA A100 datasheet, SXM; a NIC of 200 Gb/s a GPU: DGX A100 datasheet",
  ),
  Device(
    "a100-40gb",
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM-40GB"),
    flops=312e12,
    hbm_bytes=42_331_013_120.0,
    hbm_bandwidth=1555e9,
    fabric=NvLink(300e9),
    network=25e9,
    source="NVIDIA A100 datasheet, SXM; a NIC of 200 Gb/s a GPU: DGX A100 datasheet",
  ),
  Device(  # and any other A100, of which the least is taken
    "a100-pcie",
    ("NVIDIA A100",),
    flops=312e12,
    hbm_bytes=42_331_013_120.0,
    hbm_bandwidth=1555e9,
    fabric=None,
    network=0.0,
    source="NVIDIA A100 datasheet, PCIe of 40 GB",
  ),
  Device(
    "h100-pcie",
    ("NVIDIA H100 PCIe",),
    flops=756e12,
    hbm_bytes=84_942_979_072.0,
    hbm_bandwidth=2039e9,
    fabric=None,
    network=0.0,
    source="NVIDIA H100 datasheet, PCIe: 756 TFLOP/s dense, 2 TB/s",
  ),
  Device(
    "h100-nvl",
    ("NVIDIA H100 NVL",),
    flops=835e12,
    hbm_bytes=94e9,
    hbm_bandwidth=3900e9,
    fabric=None,
    network=0.0,
    source="NVIDIA H100 datasheet, NVL",
  ),
  Device(
    "h100",
    ("NVIDIA H100",),
    flops=989e12,
    hbm_bytes=84_942_979_072.0,
    hbm_bandwidth=3350e9,
    fabric=NvLink(450e9),
    network=50e9,
    source="NVIDIA H100 datasheet, SXM; a NIC of 400 Gb/s a GPU: DGX H100 datasheet",
  ),
  Device(
    "h200",
    ("NVIDIA H200",),
    flops=989e12,
    hbm_bytes=151_397_597_184.0,
    hbm_bandwidth=4800e9,
    fabric=NvLink(450e9),
    network=50e9,
    source="NVIDIA H200 datasheet, SXM; a NIC of 400 Gb/s a GPU: DGX H200 datasheet",
  ),
  Device(
    "b200",
    ("NVIDIA B200",),
    flops=2250e12,
    hbm_bytes=191_514_411_008.0,
    hbm_bandwidth=7672e9,
    fabric=NvLink(900e9),
    network=50e9,
    source="NVIDIA HGX B200 datasheet; 7672 GB/s (printed: up to 8 TB/s) as CUDA reports it; a NIC"
    " of 400 Gb/s a GPU: DGX B200 user guide",
  ),
  Device(
    "l4",
    ("NVIDIA L4",),
    flops=121e12,
    hbm_bytes=24e9,
    hbm_bandwidth=300e9,
    fabric=None,
    network=0.0,
    source="NVIDIA L4 datasheet",
  ),
)


def device_named(name: str) -> Device:
  """The device that the planner calls `name`, such as "v5p" or "a100-80gb".

  Raises:
    ConfigError: not in the table.
  """
  for device in DEVICES:
    if device.name == name:
      return device
  known = ", ".join(device.name for device in DEVICES)
  raise ConfigError(f"unknown accelerator {name!r}; known are {known}")


def device_of_kind(kind: str) -> Device | None:
  """The device named by `jax.Device.device_kind`, or None if not known here."""
  for device in DEVICES:
    for prefix in device.kinds:
      # "NVIDIA L4" must not answer for "NVIDIA L40"
      rest = kind.lower().removeprefix(prefix.lower())
      if len(rest) < len(kind) and not rest[:1].isdigit():
        return device
  return None


def peak_flops(kind: str) -> float | None:
  """Peak bf16 FLOP/s of a device of this `device_kind`, or None if not known here."""
  device = device_of_kind(kind)
  return None if device is None else device.flops
