"""LPIPS' weights: a trunk of torchvision and the heads of the `lpips` package, two files."""

import hashlib
from collections.abc import Mapping

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.interop.tensors import TensorSpec, Weights
from vidgen.models import alexnet, vgg
from vidgen.models.lpips import LPIPS

TAPS = 5


def _places(net: str) -> dict[str, int]:
  """By our convolution, its place in torchvision's sequence of convolutions, ReLUs and pools."""
  places, place = {}, 0
  if net == "alex":
    for name in alexnet.LAYERS:
      place += name in alexnet.POOLED
      places[name] = place
      place += 2
  else:
    for stage, (_, count) in enumerate(vgg.STAGES, start=1):
      place += stage > 1
      for i in range(1, count + 1):
        places[f"conv{stage}_{i}"] = place
        place += 2
  return places


def lpips_layout(network: LPIPS) -> Layout:
  """`features.N.weight` of the trunk and `linN.model.1.weight` of the heads, no classifier."""
  sources = {}
  for name, place in _places(network.net).items():
    sources[f"trunk/{name}/kernel"] = Source((f"features.{place}.weight",), "o i h w -> h w i o")
    sources[f"trunk/{name}/bias"] = Source((f"features.{place}.bias",))
  for i in range(TAPS):
    sources[f"head{i}"] = Source((f"lin{i}.model.1.weight",), "1 c 1 1 -> c")
  return Layout(sources, ignored=(r"classifier\..*",))


class Joined:
  """The arrays of two files as one, where none is in both."""

  def __init__(self, first: Weights, second: Weights):
    if both := sorted(set(first.specs) & set(second.specs)):
      raise CheckpointError(f"{first.where} and {second.where} both hold {both[0]}")
    self._first, self._second = first, second
    self.where = f"{first.where} and {second.where}"
    self.specs: Mapping[str, TensorSpec] = {**first.specs, **second.specs}

  @property
  def digest(self) -> str:
    """SHA-256 over both digests."""
    return hashlib.sha256(f"{self._first.digest} {self._second.digest}".encode()).hexdigest()

  def read(self, name: str) -> np.ndarray:
    """From whichever has it."""
    return (self._first if name in self._first.specs else self._second).read(name)
