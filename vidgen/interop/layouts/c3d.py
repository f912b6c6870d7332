"""C3D's weights as StyleGAN-V's TorchScript of TGANv2's network holds them."""

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.interop.tensors import Weights
from vidgen.models.c3d import C3D, STAGES

OFFSET = "x_offset"  # the negative mean clip, BGR
OFFSETS = {4: "c t h w -> t h w c", 5: "1 c t h w -> t h w c"}


def c3d_layout(network: C3D, *, weights: Weights | None = None) -> Layout:
  """`conv1a.weight` to `fc8.bias` and `x_offset`, which `weights` may have with a batch axis.

  Raises:
    CheckpointError: `weights` have the offset in another rank, or not at all.
  """
  rank = 4
  if weights is not None:
    if OFFSET not in weights.specs:
      raise CheckpointError(f"{weights.where}: no array {OFFSET}, the mean clip that C3D adds")
    rank = len(weights.specs[OFFSET].shape)
    if rank not in OFFSETS:
      raise CheckpointError(f"{weights.where}: {OFFSET} has {rank} dimensions")
  sources = {"offset": Source((OFFSET,), OFFSETS[rank])}
  for name in (name for stage in STAGES for name in stage):
    sources[f"{name}/kernel"] = Source((f"{name}.weight",), "o i t h w -> t h w i o")
    sources[f"{name}/bias"] = Source((f"{name}.bias",))
  for name in ("fc6", "fc7", "fc8"):
    sources[f"{name}/kernel"] = Source((f"{name}.weight",), "o i -> i o")
    sources[f"{name}/bias"] = Source((f"{name}.bias",))
  return Layout(sources)
