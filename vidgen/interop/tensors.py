"""Named arrays of a file or of memory, as everything that loads weights sees them."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from vidgen.errors import CheckpointError

MAX_DIMENSIONS = 32
MAX_BYTES = 1 << 48  # of one array; shapes beyond it are no weights
MAX_NAME = 1024  # letters

# By the name that safetensors gives it; jax brings the ones that numpy lacks.
DTYPES: Mapping[str, np.dtype] = {
  "BOOL": np.dtype(np.bool_),
  "U8": np.dtype(np.uint8),
  "I8": np.dtype(np.int8),
  "U16": np.dtype(np.uint16),
  "I16": np.dtype(np.int16),
  "U32": np.dtype(np.uint32),
  "I32": np.dtype(np.int32),
  "U64": np.dtype(np.uint64),
  "I64": np.dtype(np.int64),
  "F16": np.dtype(np.float16),
  "BF16": jnp.dtype(jnp.bfloat16),
  "F32": np.dtype(np.float32),
  "F64": np.dtype(np.float64),
  "C64": np.dtype(np.complex64),
  "F8_E4M3": jnp.dtype(jnp.float8_e4m3fn),
  "F8_E5M2": jnp.dtype(jnp.float8_e5m2),
}


@dataclasses.dataclass(frozen=True)
class TensorSpec:
  """Shape and dtype of one array; `dtype` is numpy's or ml_dtypes' name, such as "bfloat16"."""

  shape: tuple[int, ...]
  dtype: str


@runtime_checkable
class Weights(Protocol):
  """Named arrays of a file or of several."""

  @property
  def where(self) -> str:
    """The file or folder, for messages."""
    ...

  @property
  def specs(self) -> Mapping[str, TensorSpec]:
    """What there is, by the file's own names."""
    ...

  @property
  def digest(self) -> str:
    """SHA-256 of the content, in hex."""
    ...

  def read(self, name: str) -> np.ndarray:
    """The whole array, not to be written to; memory-mapped where the file allows."""
    ...


class MemoryWeights:
  """Weights that are arrays already: of a test, or of a wrapper that had to compute them."""

  def __init__(self, arrays: Mapping[str, np.ndarray], *, where: str = "memory"):
    self.where = where
    self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
    self.specs = {
      name: TensorSpec(array.shape, array.dtype.name) for name, array in self._arrays.items()
    }

  @functools.cached_property  # checking that this is `Weights` asks for it again and again
  def digest(self) -> str:
    """SHA-256 over names, shapes, dtypes and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(self._arrays):
      array = np.ascontiguousarray(self._arrays[name])
      sha256.update(f"{name}\0{array.shape}\0{array.dtype.name}\0".encode())
      sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()

  def read(self, name: str) -> np.ndarray:
    """The array itself."""
    if name not in self._arrays:
      raise CheckpointError(f"{self.where}: no array {name}")
    return self._arrays[name]


class WithoutPrefix:
  """The arrays of other weights whose names begin with `prefix`, without it."""

  def __init__(self, weights: Weights, prefix: str):
    self.where = weights.where
    self.specs = {
      name.removeprefix(prefix): spec
      for name, spec in weights.specs.items()
      if name.startswith(prefix)
    }
    self._weights, self._prefix = weights, prefix
    if not self.specs:
      raise CheckpointError(f"{self.where}: no array's name begins with {prefix!r}")

  @property
  def digest(self) -> str:
    """The digest of all of the file, and the prefix."""
    return hashlib.sha256(f"{self._weights.digest}\0{self._prefix}".encode()).hexdigest()

  def read(self, name: str) -> np.ndarray:
    """The array whose name is `prefix` + `name` there."""
    return self._weights.read(self._prefix + name)


def nbytes(shape: Sequence[Any], dtype: np.dtype) -> int:
  """The bytes of an array, once its shape is known to be one.

  Raises:
    ValueError: sizes that are no integers, negative, too many, or beyond any array.
  """
  if len(shape) > MAX_DIMENSIONS:
    raise ValueError(f"{len(shape)} dimensions")
  if any(type(size) is not int or size < 0 for size in shape):
    raise ValueError("a size that is not an integer of 0 or more")
  # Sizes beside a zero are bounded as well: numpy multiplies them.
  if math.prod(size or 1 for size in shape) * dtype.itemsize > MAX_BYTES:
    raise ValueError("a shape beyond any array")
  return math.prod(shape) * dtype.itemsize


def shown(value: Any) -> str:
  """A value from a file as a message may hold it: on one line, not long; of containers the type."""
  if isinstance(value, str | bytes):
    return repr(value[:80]) + ("..." if len(value) > 80 else "")
  if isinstance(value, int | float | None):
    return str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge integer"
  return f"a {type(value).__name__}"
