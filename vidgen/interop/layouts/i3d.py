"""I3D's weights as two public conversions name them.

"pytorch-i3d" is the spelling of DeepMind's release (`rgb_imagenet.pt`, `i3d_pretrained_400.pt`);
"kinetics-i3d-pytorch" that of the TF-Hub module's conversion which StyleGAN-V distributes as
TorchScript (`i3d_torchscript.pt`). These two hold different weights, not only different names.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.interop.tensors import TensorSpec, Weights
from vidgen.models.i3d import I3D, MIXED, UNITS

KERNEL = "o i t h w -> t h w i o"


@dataclasses.dataclass(frozen=True)
class Spelling:
  """How a conversion names a unit's batch norm, the logits and the units of a block."""

  norm: str
  logits: str
  branches: Mapping[str, str]
  lower: bool  # whether endpoints are in lower case

  def endpoint(self, name: str) -> str:
    """Their name of an endpoint."""
    return name.lower() if self.lower else name


SPELLINGS = {
  "pytorch-i3d": Spelling(
    norm="bn",
    logits="logits",
    branches={name: name for name in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")},
    lower=False,
  ),
  "kinetics-i3d-pytorch": Spelling(
    norm="batch3d",
    logits="conv3d_0c_1x1",
    branches={
      "b0": "branch_0",
      "b1a": "branch_1.0",
      "b1b": "branch_1.1",
      "b2a": "branch_2.0",
      "b2b": "branch_2.1",
      "b3b": "branch_3.1",
    },
    lower=True,
  ),
}


def spelling_of(weights: Weights) -> str:
  """Which of `SPELLINGS` the names are in.

  Raises:
    CheckpointError: in none.
  """
  for name, spelling in SPELLINGS.items():
    if f"{spelling.endpoint('Conv3d_1a_7x7')}.conv3d.weight" in weights.specs:
      return name
  raise CheckpointError(
    f"{weights.where}: not I3D as {' or '.join(SPELLINGS)} name it: no array"
    " Conv3d_1a_7x7.conv3d.weight, in upper or lower case"
  )


def _units(spelling: Spelling) -> dict[str, str]:
  """Their prefix of every convolution with batch norm, by our path."""
  units = {name: spelling.endpoint(name) for name in UNITS}
  for block in MIXED:
    for ours, theirs in spelling.branches.items():
      units[f"{block}/{ours}"] = f"{spelling.endpoint(block)}.{theirs}"
  return units


def i3d_layout(network: I3D, *, spelling: str = "pytorch-i3d") -> Layout:
  """For weights without batch norm's scale: see `without_scale`."""
  of = SPELLINGS[spelling]
  sources = {}
  for ours, theirs in _units(of).items():
    sources[f"{ours}/conv/kernel"] = Source((f"{theirs}.conv3d.weight",), KERNEL)
    sources[f"{ours}/norm/bias"] = Source((f"{theirs}.{of.norm}.bias",))
    sources[f"{ours}/norm/mean"] = Source((f"{theirs}.{of.norm}.running_mean",))
    sources[f"{ours}/norm/variance"] = Source((f"{theirs}.{of.norm}.running_var",))
  sources["Logits/kernel"] = Source((f"{of.logits}.conv3d.weight",), KERNEL)
  sources["Logits/bias"] = Source((f"{of.logits}.conv3d.bias",))
  return Layout(sources, ignored=(r".*\.num_batches_tracked",))


def without_scale(weights: Weights) -> Weights:
  """The same function without batch norm's scale, which the published network does not have.

  PyTorch's batch norm always has one, of ones after a conversion; any other goes into the kernel
  and the running mean, which the scale multiplies alike.

  Raises:
    CheckpointError: the names are of neither spelling.
  """
  spelling = SPELLINGS[spelling_of(weights)]
  scales = {}
  for prefix in _units(spelling).values():
    scale = f"{prefix}.{spelling.norm}.weight"
    if scale in weights.specs:
      scales[f"{prefix}.conv3d.weight"] = scale
      scales[f"{prefix}.{spelling.norm}.running_mean"] = scale
  return _Scaled(weights, scales)


class _Scaled:
  """Weights some of whose arrays are multiplied, along their first axis, by others of them."""

  def __init__(self, weights: Weights, scales: Mapping[str, str]):
    self._weights = weights
    self._scales = scales
    self.where = weights.where
    hidden = set(scales.values())
    self.specs: Mapping[str, TensorSpec] = {
      name: spec for name, spec in weights.specs.items() if name not in hidden
    }

  @property
  def digest(self) -> str:
    """That of what was read."""
    return self._weights.digest

  def read(self, name: str) -> np.ndarray:
    """The array, multiplied."""
    array = self._weights.read(name)
    if name not in self._scales:
      return array
    scale = self._weights.read(self._scales[name]).astype(np.float32)
    if scale.shape != array.shape[:1]:
      raise CheckpointError(f"{self.where}: {self._scales[name]} has shape {scale.shape}")
    return array.astype(np.float32) * scale.reshape(-1, *[1] * (array.ndim - 1))
