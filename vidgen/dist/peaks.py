"""Peak dense bf16 FLOP/s of one JAX device, as its maker states it.

An unknown device has no peak here, and then no utilisation is reported; a run states its own with
`train.peak_flops`.
"""

# (start of `device_kind`, FLOP/s, source). The first match counts, so longer names come first.
# NVIDIA prints figures with sparsity; these are the dense ones, half of them.
PEAKS = (
  ("TPU v2", 22.5e12, "cloud.google.com/tpu/docs/v2: 45 a chip, two devices a chip"),
  ("TPU v3", 61.5e12, "cloud.google.com/tpu/docs/v3: 123 a chip, two devices a chip"),
  ("TPU v4 lite", 138e12, "Jouppi et al. 2021, Ten lessons, table 1"),
  ("TPU v4", 275e12, "cloud.google.com/tpu/docs/v4"),
  ("TPU v5 lite", 197e12, "cloud.google.com/tpu/docs/v5e"),
  ("TPU v5e", 197e12, "cloud.google.com/tpu/docs/v5e"),
  ("TPU v5", 459e12, "cloud.google.com/tpu/docs/v5p"),
  ("TPU v6 lite", 918e12, "cloud.google.com/tpu/docs/v6e"),
  ("TPU v6e", 918e12, "cloud.google.com/tpu/docs/v6e"),
  ("TPU7x", 1153.5e12, "cloud.google.com/tpu/docs/tpu7x: 2307 a chip, two devices a chip"),
  ("TPU v7x", 1153.5e12, "cloud.google.com/tpu/docs/tpu7x: 2307 a chip, two devices a chip"),
  ("NVIDIA A100", 312e12, "NVIDIA A100 datasheet"),
  ("NVIDIA H100 PCIe", 756e12, "NVIDIA H100 datasheet"),
  ("NVIDIA H100 NVL", 835e12, "NVIDIA H100 datasheet"),
  ("NVIDIA H100", 989e12, "NVIDIA H100 datasheet, SXM"),
  ("NVIDIA H200", 989e12, "NVIDIA H200 datasheet, SXM"),
  ("NVIDIA B200", 2250e12, "NVIDIA HGX B200 datasheet"),
  ("NVIDIA L4", 121e12, "NVIDIA L4 datasheet"),
)


def peak_flops(device_kind: str) -> float | None:
  """Peak bf16 FLOP/s of a device named by `jax.Device.device_kind`, or None if not known here."""
  for prefix, flops, _ in PEAKS:
    if device_kind.lower().startswith(prefix.lower()):
      # "NVIDIA L4" must not answer for "NVIDIA L40"
      if not device_kind[len(prefix) : len(prefix) + 1].isdigit():
        return flops
  return None
