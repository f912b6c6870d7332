"""Frozen networks that read samples for metrics, each with its preprocessing."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from vidgen.errors import DataError


@runtime_checkable
class Extractor(Protocol):
  """A frozen network with its preprocessing: what it reads, what it gives."""

  @property
  def name(self) -> str:
    """As in a protocol record, such as "i3d"."""
    ...

  @property
  def digest(self) -> str:
    """SHA-256 of its weights."""
    ...

  def protocol(self) -> dict[str, Any]:
    """What two scores must share to be compared: plain values, by name."""
    ...

  def __call__(self, media: Any) -> dict[str, np.ndarray]:
    """float32 features [b, d] by the name of the tensor."""
    ...


@dataclasses.dataclass(frozen=True)
class PixelExtractor:
  """An extractor of uint8 pictures [b, h, w, 3] or clips [b, t, h, w, 3], compiled once a shape.

  `run(params, media)` gives features by name, jitted; every call sees exactly `batch_size` samples,
  the last ones filled up with copies whose features are dropped, so that a sample's features do
  not depend on how many others there are. `check(shape)` refuses what the network cannot read.
  """

  name: str
  digest: str
  run: Callable[[Any, Any], Mapping[str, jax.Array]]
  params: Any
  facts: Mapping[str, Any]
  batch_size: int
  rank: int  # of a batch: 4 for pictures, 5 for clips
  check: Callable[[tuple[int, ...]], None] = lambda shape: None

  def protocol(self) -> dict[str, Any]:
    """The extractor, its weights, and how samples are brought to it."""
    named = {"extractor": self.name, "extractor_digest": self.digest, "dtype": "float32"}
    return named | dict(self.facts)

  def on(self, device: Any) -> "PixelExtractor":
    """The same, computing on that device of jax."""
    return dataclasses.replace(self, params=jax.device_put(self.params, device))

  def __call__(self, media: np.ndarray | jax.Array) -> dict[str, np.ndarray]:
    """float32 features [b, d] by tensor.

    Raises:
      DataError: not uint8, not RGB, empty, or of a shape that the network cannot read.
    """
    shape = tuple(media.shape)
    if media.dtype != np.uint8 or len(shape) != self.rank or shape[-1] != 3 or not all(shape):
      raise DataError(
        f"{self.name} reads uint8 RGB of {self.rank} dimensions, not {media.dtype} of shape {shape}"
      )
    self.check(shape)
    parts = []
    for start in range(0, shape[0], self.batch_size):
      batch = np.asarray(media[start : start + self.batch_size])
      features = self.run(self.params, filled(batch, self.batch_size))
      parts.append({k: np.asarray(v)[: len(batch)] for k, v in features.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def filled(batch: np.ndarray, size: int) -> np.ndarray:
  """A batch of `size`, the last sample repeated, so that one program serves every batch."""
  missing = size - len(batch)
  return np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch


def random_params(like: Any, *, seed: int) -> Any:
  """Random parameters of the structure of `like`, for a network of convolutions and ReLUs.

  Kernels are normal with variance 2 / fan-in (He et al., 2015), batch norm changes nothing. No
  published number comes of them, but a feature space that distances can be tried in. Drawn by
  NumPy: to compile as many draws takes XLA a minute.
  """
  generator = np.random.default_rng(seed)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    if len(leaf.shape) > 1:
      kernel = generator.standard_normal(leaf.shape, np.float32)
      return kernel * np.float32((2 / math.prod(leaf.shape[:-1])) ** 0.5)
    one = jax.tree_util.keystr(path[-1:], simple=True) in ("variance", "scale")
    return np.full(leaf.shape, 1 if one else 0, np.float32)

  return jax.tree_util.tree_map_with_path(draw, like)
