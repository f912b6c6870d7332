"""Rooflines: numbers worked out by hand on small devices, and the laws they obey on real ones."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from vidgen.dist.collectives import Collective
from vidgen.dist.devices import Device, Ici, NvLink, device_named
from vidgen.dist.roofline import (
  Place,
  StepTime,
  communication,
  hbm_floor,
  link_of,
  mfu_bound,
  places_of,
  step_time,
)
from vidgen.errors import ConfigError

TPU = Device("t", (), 100.0, 1.0, 10.0, Ici(10.0, dimensions=3, wrap=4), 2.0, "")
GPU = Device("g", (), 100.0, 1.0, 10.0, NvLink(40.0, domain=8), 5.0, "")


def torus(*sides, slices=1, cores=1):
  """Places in row-major order of (slice, x, y, z, core)."""
  return [
    Place(domain, position, core)
    for domain in range(slices)
    for position in itertools.product(*map(range, sides))
    for core in range(cores)
  ]


def groups(shape, *axes):
  """The first group of a mesh of this shape over these axes, of ids in row-major order."""
  index = tuple(slice(None) if axis in axes else 0 for axis in range(len(shape)))
  return np.arange(np.prod(shape)).reshape(shape)[index].ravel().tolist()


@pytest.mark.parametrize(
  ("axes", "ring", "exchange"),
  [
    ((2,), 20, (7 / 8) / (8 / (4 * 20))),  # 8 of 8, a multiple of 4: both ways round
    ((1,), 20, (3 / 4) / (4 / (4 * 20))),
    ((0,), 10, (1 / 2) / (2 / (4 * 10))),  # 2 of 2: one link between them
    ((1, 2), 40, (31 / 32) / (8 / (4 * 20))),  # the longest side is crossed by most
    ((0, 1, 2), 50, (63 / 64) / (8 / (4 * 20))),
  ],
)
def test_links_of_whole_sides_of_a_torus(axes, ring, exchange):
  link = link_of(groups((2, 4, 8), *axes), torus(2, 4, 8), TPU)
  assert link.medium == "ici"
  assert (link.ring, link.exchange) == pytest.approx((ring, exchange))


def test_a_part_of_a_side_is_a_line_and_a_strided_part_shares_its_links():
  near, far = groups((2, 4), 1), groups((4, 2), 0)
  assert link_of(near, torus(8), TPU).ring == 10  # 0, 1, 2, 3
  assert link_of(far, torus(8), TPU).ring == 20 / 2  # 0, 2, 4, 6: closed, and 1, 3, 5, 7 too
  assert link_of([0, 2], torus(6), TPU).ring == 10 / 2


def test_a_set_of_chips_that_is_no_box_has_one_path():
  diagonal = [0, 5, 10, 15]
  assert link_of(diagonal, torus(4, 4), TPU).ring == 20


def test_two_devices_of_a_chip_share_its_links():
  fabric = Ici(10.0, dimensions=3, wrap=4, devices_per_chip=2, chip_bandwidth=60.0)
  half = dataclasses.replace(TPU, fabric=fabric)
  places = torus(4, cores=2)
  assert link_of([0, 1], places, half).ring == 60
  assert link_of([0, 1], places, half).medium == "chip"
  assert link_of([0, 2, 4, 6], places, half).ring == 20 / 2  # the other cores send too
  assert link_of(range(8), places, half).ring == 20
  with pytest.raises(ConfigError, match="megacore"):
    link_of([0, 1], places, TPU)


def test_gpus_within_a_domain_and_beyond():
  places = places_of([types.SimpleNamespace(id=i) for i in range(32)], GPU)
  within = link_of(groups((4, 8), 1), places, GPU)
  assert (within.medium, within.ring, within.exchange) == ("nvlink", 40, 40)
  lone = link_of(groups((4, 8), 0), places, GPU)  # one GPU of each domain: its own NIC
  assert (lone.medium, lone.ring, lone.exchange) == ("network", 5, 5)
  everyone = link_of(range(32), places, GPU)  # 8 NICs a domain are as fast as NVLink
  assert everyone.ring == 40
  assert everyone.exchange == pytest.approx(5 * 31 / 24)  # 24 of 31 parts leave the domain
  pair = link_of([0, 1, 8, 9], places, GPU)
  assert (pair.medium, pair.ring) == ("network", 10)


def test_slices_are_joined_by_the_network():
  places = torus(4, 4, slices=2)
  across = link_of(groups((2, 16), 0), places, TPU)
  assert (across.medium, across.ring) == ("network", 2)
  both = link_of(range(32), places, TPU)
  assert (both.medium, both.ring) == ("network", 2 * 16)
  assert both.exchange == pytest.approx(2 * 31 / 16)


def test_places_of_tpus_are_read_from_the_devices():
  """A topology of one slice has no slice index."""
  alone = types.SimpleNamespace(coords=[0, 1, 2], core_on_chip=1)
  second = types.SimpleNamespace(coords=[0, 0, 0], core_on_chip=0, slice_index=1)
  devices = np.array([[alone], [second]])
  assert places_of(devices, TPU) == [Place(0, (0, 1, 2), 1), Place(1, (0, 0, 0), 0)]


def test_links_that_are_not_known_are_not_made_up():
  places = torus(2, slices=2)
  with pytest.raises(ConfigError, match="no links of l4"):
    link_of([0, 1], places, device_named("l4"))
  with pytest.raises(ConfigError, match="no network of l4"):
    link_of([0, 2], places, device_named("l4"))


def test_communication_by_axes():
  """On a 4 x 2 mesh over a 4 x 2 torus: rings of 20 bytes/s, and pairs of 10."""
  mesh = {"fsdp": 4, "context": 2}
  rings = ((0, 2, 4, 6), (1, 3, 5, 7))
  pairs = ((0, 1), (2, 3), (4, 5), (6, 7))
  shift = ((0, 2), (2, 4), (4, 6), (6, 0), (1, 3), (3, 5), (5, 7), (7, 1))
  seconds = communication(
    [
      Collective("all-gather", "a", "", operand_bytes=100, groups=rings, times=7),
      Collective("all-reduce", "b", "", operand_bytes=100, groups=rings),
      Collective("collective-permute", "c", "", operand_bytes=100, groups=shift),
      Collective("all-to-all", "d", "", operand_bytes=100, groups=pairs, times=2),
    ],
    mesh_shape=mesh,
    places=torus(4, 2),
    device=TPU,
  )
  assert seconds == {
    ("fsdp",): pytest.approx((7 * 300 + 150 + 100) / 20),
    ("context",): pytest.approx(2 * 50 / 10),
  }


def test_an_all_gather_on_a_v5p_ring_takes_its_size_over_both_links():
  """How to scale your model, Part 3: V / W, W both ways; here less the part one has already."""
  v5p = device_named("v5p")
  gather = Collective("all-gather", "a", "", operand_bytes=2**30, groups=(tuple(range(16)),))
  seconds = communication([gather], mesh_shape={"fsdp": 16}, places=torus(16), device=v5p)
  assert seconds[("fsdp",)] == pytest.approx(15 / 16 * 16 * 2**30 / 200e9)


def test_an_all_to_all_on_a_ring_costs_a_quarter_of_an_all_gather():
  """How to scale your model, Part 3, of the same array; here of eighths, less what stays."""
  places, group = torus(8), (tuple(range(8)),)
  gather = Collective("all-gather", "a", "", operand_bytes=1000, groups=group)
  exchange = Collective("all-to-all", "b", "", operand_bytes=1000, groups=group)
  of = lambda c: communication([c], mesh_shape={"x": 8}, places=places, device=TPU)[("x",)]  # noqa: E731  (as short as its name)
  assert of(exchange) == pytest.approx(of(gather) * 8 / 7 / 4)


def test_the_bound_of_a_step_names_what_binds_it():
  links = {("fsdp",): 3.0, ("context",): 7.0}
  step = step_time(TPU, flops=500, hbm_bytes=60, communication=links)
  assert (step.compute, step.memory) == (5, 6)
  assert step.overlapped == 7
  assert step.binding == "communication over context"
  assert StepTime(8.0, 6.0, links).binding == "compute"
  assert StepTime(5.0, 8.0, links).binding == "memory"
  assert StepTime(1.0, 0.0, {}).overlapped == 1


def test_mfu_is_model_work_over_all_peaks():
  assert mfu_bound(TPU, devices=4, model_flops=400, seconds=2.0) == 0.5
  # Bound by compute, with a third of it recomputation: three quarters of the peak.
  step = step_time(TPU, flops=4 * 100, hbm_bytes=0, communication={})
  bound = mfu_bound(TPU, devices=8, model_flops=8 * 3 * 100, seconds=step.overlapped)
  assert bound == 0.75


def test_the_least_traffic_reads_writes_and_keeps():
  assert hbm_floor(arguments=10, outputs=5, temporaries=3) == 21
