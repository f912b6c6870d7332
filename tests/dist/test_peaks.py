"""Peaks: known devices by their kind, and none for others."""

import pytest

from vidgen.dist.peaks import PEAKS, peak_flops


@pytest.mark.parametrize(
  ("kind", "flops"),
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU7x", 2307e12 / 2),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
  ],
)
def test_known_devices(kind, flops):
  assert peak_flops(kind) == flops


@pytest.mark.parametrize("kind", ["cpu", "TPU v9", "NVIDIA L40", "NVIDIA GeForce RTX 4090", ""])
def test_no_peak_is_made_up(kind):
  assert peak_flops(kind) is None


def test_no_entry_is_hidden_by_an_earlier_one():
  for i, (prefix, _, source) in enumerate(PEAKS):
    assert source
    for earlier, _, _ in PEAKS[:i]:
      assert not prefix.startswith(earlier), f"{prefix} is never reached"
