"""LPIPS of pairs of pictures, frame by frame."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from vidgen.errors import ConfigError, DataError
from vidgen.evals.extractors import filled
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.lpips import Joined, lpips_layout
from vidgen.interop.weight_files import open_weights
from vidgen.models.lpips import LPIPS, NETS, Net
from vidgen.nn.partition import unboxed


@dataclasses.dataclass(frozen=True)
class PairDistance:
  """A distance of uint8 pictures [b, h, w, 3], compiled once a shape for `batch_size` pairs."""

  name: str
  digest: str
  run: Callable[[Any, Any, Any], jax.Array]
  params: Any
  facts: dict[str, Any]
  batch_size: int

  def protocol(self) -> dict[str, Any]:
    """The network, its weights, and how pictures are brought to it."""
    named = {"extractor": self.name, "extractor_digest": self.digest, "dtype": "float32"}
    return named | self.facts

  def on(self, device: Any) -> "PairDistance":
    """The same, computing on that device of jax."""
    return dataclasses.replace(self, params=jax.device_put(self.params, device))

  def __call__(
    self, a: UInt8[np.ndarray, "*a 3"], b: UInt8[np.ndarray, "*b 3"]
  ) -> Float[np.ndarray, " n"]:
    """The distance of each pair.

    Raises:
      DataError: the two differ in shape, are empty, or no pictures.
    """
    if a.shape != b.shape or a.ndim != 4 or not len(a):
      raise DataError(f"{self.name}: pairs of shapes {a.shape} and {b.shape}")
    parts = []
    for start in range(0, len(a), self.batch_size):
      pair = [np.asarray(x[start : start + self.batch_size]) for x in (a, b)]
      found = self.run(self.params, *(filled(x, self.batch_size) for x in pair))
      parts.append(np.asarray(found)[: len(pair[0])])
    return np.concatenate(parts)


def load_lpips(
  trunk: str | Path, heads: str | Path, *, net: Net = "alex", batch_size: int = 16
) -> PairDistance:
  """LPIPS 0.1 of torchvision's `trunk` and the `lpips` package's `heads` (`v0.1/alex.pth`).

  Pictures are compared at their own size.

  Raises:
    ConfigError: an unknown `net`.
    CheckpointError: a file is damaged, or not of `net`.
  """
  if net not in NETS:
    raise ConfigError(f"LPIPS: unknown net {net!r}; known are {', '.join(NETS)}")
  network = LPIPS(net)
  weights = Joined(open_weights(trunk), open_weights(heads))
  like = unboxed(jax.eval_shape(network.init, jax.random.key(0), *network.example()))["params"]
  params = load_params(weights, lpips_layout(network), like=like)
  return lpips_distance(params, digest=weights.digest, net=net, batch_size=batch_size)


def lpips_distance(
  params: Any, *, digest: str, net: Net = "alex", batch_size: int = 16
) -> PairDistance:
  """As `load_lpips`, from parameters at hand."""
  network = LPIPS(net)

  def run(params: Any, a: jax.Array, b: jax.Array) -> Any:
    first, second = (x.astype(jnp.float32) * (2 / 255) - 1 for x in (a, b))
    return network.apply({"params": params}, first, second)

  return PairDistance(
    name=f"lpips_{net}",
    digest=digest,
    run=jax.jit(run),
    params=params,
    facts={"version": "0.1", "net": net, "resize": "none", "value_range": [-1.0, 1.0]},
    batch_size=batch_size,
  )
