"""How long a train step takes at least: compute, memory and communication, each against its peak.

The bounds are of bandwidth alone: no latency, no waiting, every unit at its peak. What a step
really takes lies above the largest of the three, and mostly below their sum.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vidgen.dist.collectives import Collective, axes_of
from vidgen.dist.devices import Device, Ici, NvLink
from vidgen.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a device is: its slice or NVLink domain, its chip's position in that, its core."""

  domain: int
  position: tuple[int, ...]
  core: int = 0


@dataclasses.dataclass(frozen=True)
class Link:
  """What the devices of a group can send each other, in bytes/s of each device.

  medium: "chip", "ici", "nvlink" or "network", the slowest in the way. ring: for all-gather,
  reduce-scatter, all-reduce and neighbours; exchange: for all-to-all.
  """

  medium: str
  ring: float
  exchange: float


def places_of(devices: Any, device: Device) -> list[Place]:
  """The places of `mesh.devices` by logical id, also of an ahead-of-time topology's.

  GPUs are taken to fill NVLink domains in the order of their ids.
  """
  if isinstance(device.fabric, NvLink):
    domain = device.fabric.domain
    return [Place(d.id // domain, (d.id % domain,)) for d in np.ravel(devices)]
  # A topology of one slice has no slice index.
  return [
    Place(getattr(d, "slice_index", None) or 0, tuple(d.coords), d.core_on_chip)
    for d in np.ravel(devices)
  ]


def link_of(group: Sequence[int], places: Sequence[Place], device: Device) -> Link:
  """The link of the devices with these logical ids, all groups like it busy at the same time.

  Within a slice the group's sides of the torus are rings where they close, which carry both ways,
  else lines, on which the ends have one link only. Beyond a slice or NVLink domain every device
  brings its own share of the network: a ring of many domains crosses with all of them at once.

  Raises:
    ConfigError: the table of devices does not know the links of this one.
  """
  members = [places[i] for i in group]
  counts = collections.Counter(member.domain for member in members)
  first = [member for member in members if member.domain == members[0].domain]
  match device.fabric:
    case _ if len(first) == 1:
      inside = Link("network", math.inf, math.inf)
    case Ici() as ici:
      sides = np.max([p.position for p in places if p.domain == first[0].domain], axis=0) + 1
      inside = _torus(first, [int(side) for side in sides], ici)
    case NvLink(bandwidth=bandwidth):
      inside = Link("nvlink", bandwidth, bandwidth)
    case _:
      raise ConfigError(f"no links of {device.name} are known in vidgen/dist/devices.py")
  if len(counts) == 1:
    return inside
  if not device.network:
    raise ConfigError(f"no network of {device.name} is known in vidgen/dist/devices.py")
  local, n = min(counts.values()), len(members)
  ring = local * device.network
  exchange = device.network * (n - 1) / (n - local)  # what stays within does not cross
  slower = ring < inside.ring or exchange < inside.exchange
  return Link(
    "network" if slower else inside.medium,
    min(ring, inside.ring),
    min(exchange, inside.exchange),
  )


def _torus(members: Sequence[Place], sides: Sequence[int], ici: Ici) -> Link:
  chips = {member.position for member in members}
  if len(chips) == 1:
    if not ici.chip_bandwidth:
      raise ConfigError("a chip of this kind is one device: compile for v4 as megacore")
    return Link("chip", ici.chip_bandwidth, ici.chip_bandwidth)
  rates, spans = [], []
  for axis, side in enumerate(sides):
    at = sorted({chip[axis] for chip in chips})
    if len(at) > 1:
      stride = (at[-1] - at[0]) // (len(at) - 1)  # groups in between use the same links
      closed = len(at) * stride == side and side % ici.wrap == 0
      rates.append(ici.link_bandwidth * (2 if closed else 1) / stride)
      spans.append(len(at))
  # A group that is no box is a path, and has the links of one side.
  ring = sum(rates) if math.prod(spans) == len(chips) else min(rates)
  n, shared = len(members), ici.devices_per_chip
  # All-to-all: half of what each device sends crosses the middle of the longest side.
  seconds = shared * max(span / (4 * rate) for span, rate in zip(spans, rates, strict=True))
  return Link("ici", ring * n / len(chips) / shared, (n - 1) / n / seconds)


def communication(
  collectives: Iterable[Collective],
  *,
  mesh_shape: Mapping[str, int],
  places: Sequence[Place],
  device: Device,
) -> dict[tuple[str, ...], float]:
  """Seconds that a program's collectives take one after the other, by the mesh axes they span.

  Raises:
    ConfigError: see `link_of`.
  """
  seconds: dict[tuple[str, ...], float] = {}
  links: dict[tuple[int, ...], Link] = {}
  for collective in collectives:
    group = _members(collective)
    if len(set(group)) == 1:
      continue  # nothing moves
    if group not in links:
      links[group] = link_of(group, places, device)
    link, axes = links[group], axes_of(collective, mesh_shape)
    rate = link.exchange if collective.kind == "all-to-all" else link.ring
    seconds[axes] = seconds.get(axes, 0.0) + collective.total_bytes / rate
  return seconds


def _members(collective: Collective) -> tuple[int, ...]:
  """The first group; of a collective-permute the chain that its first pair starts."""
  apart = [group for group in collective.groups if len(set(group)) > 1]
  group = (apart or collective.groups)[0]  # a permute may leave some where they are
  if collective.kind == "collective-permute":
    targets = {source: target for source, target in collective.groups}
    while targets.get(group[-1], group[0]) not in group:
      group = (*group, targets[group[-1]])
  return group


def hbm_floor(
  *, arguments: float | int, outputs: float | int, temporaries: float | int = 0
) -> float:
  """Bytes that a step moves at least to and from memory, of sizes by `compiled.memory_analysis()`.

  Arguments are read and outputs written once; temporaries, at their peak, written and read once. A
  step reads its weights two or three times, and activations as often as operations are not fused,
  so the true traffic is a multiple of this.
  """
  return float(arguments + outputs + 2 * temporaries)


@dataclasses.dataclass(frozen=True)
class StepTime:
  """Seconds of a step at least: on the arithmetic units, in memory, on the links by mesh axes."""

  compute: float
  memory: float
  communication: Mapping[tuple[str, ...], float]

  @property
  def overlapped(self) -> float:
    """Seconds if all goes on at once, also on the links of different mesh axes: none is shorter."""
    return max(self.compute, self.memory, *self.communication.values())

  @property
  def binding(self) -> str:
    """What the overlapped step waits for: "compute", "memory" or "communication over AXES"."""
    if self.overlapped == self.compute:
      return "compute"
    if self.overlapped == self.memory:
      return "memory"
    axes = max(self.communication, key=lambda axes: self.communication[axes])
    return f"communication over {', '.join(axes)}"


def step_time(
  device: Device,
  *,
  flops: float | int,
  hbm_bytes: float | int,
  communication: Mapping[tuple[str, ...], float],
) -> StepTime:
  """The least times of a step in which each device does `flops` and moves `hbm_bytes`."""
  return StepTime(flops / device.flops, hbm_bytes / device.hbm_bandwidth, communication)


def mfu_bound(device: Device, *, devices: int, model_flops: float | int, seconds: float) -> float:
  """The share of the peak that a step of `seconds` on `devices` makes of all its model FLOPs."""
  return model_flops / (devices * device.flops * seconds)
