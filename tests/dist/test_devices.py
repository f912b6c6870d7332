"""Accelerators: known ones by either name, none for others, and numbers that hang together."""

import pytest

from vidgen.dist.devices import DEVICES, GIB, Ici, NvLink, device_named, device_of_kind, peak_flops
from vidgen.errors import ConfigError


@pytest.mark.parametrize(
  ("kind", "name", "flops"),
  [
    ("TPU v2", "v2", 45e12 / 2),
    ("TPU v4", "v4", 275e12),
    ("TPU v4 lite", "v4i", 138e12),
    ("TPU v5 lite", "v5e", 197e12),
    ("TPU v5e", "v5e", 197e12),
    ("TPU v5", "v5p", 459e12),
    ("TPU v5p", "v5p", 459e12),
    ("TPU v6 lite", "v6e", 918e12),
    ("TPU7x", "v7x", 2307e12 / 2),
    ("NVIDIA A100-SXM4-80GB", "a100-80gb", 312e12),
    ("NVIDIA A100-SXM4-40GB", "a100-40gb", 312e12),
    ("NVIDIA A100 80GB PCIe", "a100-pcie", 312e12),
    ("NVIDIA H100 80GB HBM3", "h100", 989e12),
    ("NVIDIA H100 PCIe", "h100-pcie", 756e12),
    ("NVIDIA H100 NVL", "h100-nvl", 835e12),
    ("NVIDIA H200", "h200", 989e12),
    ("NVIDIA B200", "b200", 2250e12),
    ("NVIDIA L4", "l4", 121e12),
  ],
)
def test_known_devices(kind, name, flops):
  device = device_of_kind(kind)
  assert device is not None
  assert device is device_named(name)
  assert peak_flops(kind) == flops


@pytest.mark.parametrize("kind", ["cpu", "TPU v9", "NVIDIA L40", "NVIDIA GeForce RTX 4090", ""])
def test_no_peak_is_made_up(kind):
  assert device_of_kind(kind) is None
  assert peak_flops(kind) is None


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(ConfigError, match="'v9'; known are v2, .*v5p, .*h100"):
    device_named("v9")


def test_no_entry_is_hidden_by_an_earlier_one():
  seen = []
  for device in DEVICES:
    assert device.source
    for prefix in device.kinds:
      assert not [p for p in seen if prefix.startswith(p)], f"{prefix} is never reached"
    seen += device.kinds
  assert len({device.name for device in DEVICES}) == len(DEVICES)


def test_every_device_has_a_ridge_and_links_slower_than_memory():
  for device in DEVICES:
    assert 50 < device.flops / device.hbm_bandwidth < 600, device.name
    assert 5 * GIB < device.hbm_bytes < 200e9, device.name
    match device.fabric:
      case Ici(link_bandwidth=link, dimensions=dimensions):
        assert dimensions in (2, 3)
        assert device.network < link < device.hbm_bandwidth / 4
      case NvLink(bandwidth=link):
        assert device.network < link < device.hbm_bandwidth / 3


@pytest.mark.parametrize(
  ("name", "both_ways"), [("v5e", 400e9), ("v5p", 1200e9), ("v6e", 800e9), ("v7x", 1200e9)]
)
def test_links_of_a_chip_add_up_to_what_is_printed_for_it(name, both_ways):
  ici = device_named(name).fabric
  assert isinstance(ici, Ici)
  assert 2 * ici.dimensions * 2 * ici.link_bandwidth == both_ways
