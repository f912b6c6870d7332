"""Counts, sums and sums of products of features, exact, so that how they were split cannot matter.

Floats round when they are added, and round otherwise in another order. Here a feature, a float32,
is written without loss in digits of 20 bits, at places that are the same for all features; digits
and their products are added as whole numbers. So any batch size, any order and any number of hosts
give the same bits; the mean and the covariance are rounded once, at the end.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, Num

from vidgen.errors import DataError

BITS = 20  # of a digit, which lies in [-2^19, 2^19]
ROWS = 4096  # of digits whose products are added in float64: they stay below 2^53 there
FORMAT = "vidgen-moments 1"
MAX_BYTES = 2 << 30  # of a file, unpacked: 40 times what 2,048 features take
Divisor = Literal["n-1", "n"]
Digits = dict[int, np.ndarray]  # int64 by place: the value is the sum of digits[p] * 2^(20 p)


class Moments:
  """Running sums over features of one width; `add` them as they come."""

  def __init__(self, width: int):
    self.width = width
    self.count = 0
    self._sums: Digits = {}  # [d]
    self._products: Digits = {}  # [d, d]
    self._waiting: list[np.ndarray] = []  # not in the sums yet: few at a time are slow to add

  def add(self, features: Num[np.ndarray, "b d"]) -> None:
    """Takes in the features of more samples, float32 (or a shorter float) of this width.

    Raises:
      ValueError: features of another dtype or width.
      DataError: a value that is not finite.
    """
    short = features.dtype.kind not in "iub" and features.dtype.itemsize <= 4
    if features.shape[1] != self.width or not short:
      got = f"{features.dtype} {list(features.shape)}"
      raise ValueError(f"features must be float32 [b, {self.width}], not {got}")
    features = np.array(features, np.float32)  # a copy, as the caller may write into its own
    fine = np.isfinite(features).all(axis=1)
    if not fine.all():
      raise DataError(f"the features of sample {self.count + int(np.argmin(fine))} are not finite")
    self.count += len(features)
    self._waiting.append(features)
    if sum(map(len, self._waiting)) >= ROWS:
      self._settle()

  def mean(self) -> Float[np.ndarray, "d"]:
    """float64.

    Raises:
      DataError: no sample.
    """
    if not self.count:
      raise DataError("no sample, and so no mean")
    self._settle()
    return _value(self._sums, (self.width,)) / self.count

  def covariance(self, *, divisor: Divisor = "n-1") -> Float[np.ndarray, "d d"]:
    """float64: products of distances from the mean, over the count or the count less one.

    Raises:
      DataError: fewer than two samples.
    """
    if self.count < 2:
      raise DataError(f"a covariance needs two samples or more, there are {self.count}")
    self._settle()
    # count * sum(x x^T) - sum(x) sum(x)^T, in whole numbers: nothing cancels, however far the mean.
    exact = {place: self.count * digits for place, digits in self._products.items()}
    for i, left in self._sums.items():
      for j, right in self._sums.items():
        exact[i + j] = exact.get(i + j, 0) - np.outer(left, right)
    scatter = _value(_carried(exact), (self.width, self.width)) / self.count
    return scatter / (self.count - 1 if divisor == "n-1" else self.count)

  def digest(self) -> str:
    """SHA-256 of the sums: the same for the same samples, however they were added."""
    return _digest(self._arrays())

  def to_bytes(self) -> bytes:
    """The sums as an .npz file, without loss."""
    arrays = self._arrays()
    file = io.BytesIO()
    held = {**arrays, "format": np.array(FORMAT), "digest": np.array(_digest(arrays))}
    np.savez_compressed(file, allow_pickle=False, **held)
    return file.getvalue()

  def _settle(self) -> None:
    """Adds the waiting features to the sums, which are then the only digits of their value."""
    rows = np.concatenate(self._waiting) if self._waiting else np.zeros((0, self.width), np.float32)
    self._waiting = []
    for start in range(0, len(rows), ROWS):
      digits = _split(rows[start : start + ROWS])
      for i, left in digits.items():
        _accumulate(self._sums, i, left.sum(axis=0))
        _accumulate(self._products, 2 * i, left.T @ left)
        for j, right in digits.items():
          if j < i:
            product = left.T @ right
            _accumulate(self._products, i + j, product + product.T)
      self._sums, self._products = _carried(self._sums), _carried(self._products)

  def _arrays(self) -> dict[str, np.ndarray]:
    self._settle()
    triangle = np.triu_indices(self.width)
    products = {place: digits[triangle] for place, digits in self._products.items()}
    arrays = {"count": np.array(self.count), "width": np.array(self.width)}
    for name, digits in (("sums", self._sums), ("products", products)):
      places = sorted(digits)
      size = self.width if name == "sums" else len(triangle[0])
      arrays[f"{name}_places"] = np.array(places, np.int32)
      arrays[name] = np.array([digits[p] for p in places], np.int32).reshape(len(places), size)
    return arrays


def moments_of(features: Num[np.ndarray, "n d"]) -> Moments:
  """Of one set of features, all at hand."""
  moments = Moments(features.shape[1])
  moments.add(features)
  return moments


def merged(parts: Sequence[Moments]) -> Moments:
  """Of the samples of all parts, one or more, as if one had seen them all.

  Raises:
    ValueError: parts of several widths.
  """
  if len({part.width for part in parts}) != 1:
    raise ValueError(f"cannot merge moments of widths {[part.width for part in parts]}")
  total = Moments(parts[0].width)
  for part in parts:
    part._settle()
    total.count += part.count
    for into, digits in ((total._sums, part._sums), (total._products, part._products)):
      for place, values in digits.items():
        _accumulate(into, place, values)
  total._sums, total._products = _carried(total._sums), _carried(total._products)
  return total


def gathered(moments: Moments) -> Moments:
  """Of the samples of all processes, on each of them; every process must call it."""
  if jax.process_count() == 1:
    return moments
  arrays = moments._arrays()
  total = {"width": arrays["width"], "count": _sum_over_processes(arrays["count"][None])[0]}
  for name in ("sums", "products"):
    places = arrays[f"{name}_places"]
    ends = np.array([places.min(initial=1 << 20), -places.max(initial=-(1 << 20))], np.int32)
    first, last = multihost_utils.process_allgather(ends).reshape(-1, 2).min(axis=0) * (1, -1)
    digits = {
      place: _sum_over_processes(_row(arrays, name, place))
      for place in range(int(first), int(last) + 1)
    }
    total |= {f"{name}_places": np.array(sorted(digits), np.int32)}
    total |= {name: np.array([digits[p] for p in sorted(digits)], np.int64)}
  return _from_arrays(total)


def from_bytes(data: bytes, *, where: str) -> Moments:
  """What `Moments.to_bytes` wrote; `where` names it in messages.

  Raises:
    DataError: a file that is damaged, or of something else.
  """
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      if (size := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
        raise DataError(f"{where}: {size} bytes when unpacked, more than moments have")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    if str(arrays.pop("format")) != FORMAT:
      raise DataError(f"{where}: not moments of format {FORMAT!r}")
    if str(arrays.pop("digest")) != _digest(arrays):
      raise DataError(f"{where}: damaged: its digest differs from the one recorded")
    width = int(arrays["width"])
    for name, size in (("sums", width), ("products", width * (width + 1) // 2)):
      if arrays[name].ndim != 2 or arrays[name].shape[1] != size:
        raise DataError(f"{where}: its {name} are not those of {width} features")
    return _from_arrays(arrays)
  except (ValueError, KeyError, TypeError, IndexError, OSError, EOFError, zipfile.BadZipFile,
          zlib.error, NotImplementedError, MemoryError) as error:  # fmt: skip
    raise DataError(f"{where}: not the moments of features: {error}") from error


def _split(x: np.ndarray) -> Digits:
  """float32 [b, d] as whole numbers, in float64, by place; their sum is x exactly."""
  rest = x.astype(np.float64)
  _, exponent = np.frexp(np.max(np.abs(rest), initial=0.0))
  place = -((BITS - 1 - int(exponent)) // BITS)  # where |x| < 2^19 units
  digits = {}
  while rest.any():
    unit = 2.0 ** (BITS * place)
    digit = np.rint(rest / unit)
    rest -= digit * unit
    if digit.any():
      digits[place] = digit
    place -= 1
  return digits


def _accumulate(into: Digits, place: int, values: np.ndarray) -> None:
  into[place] = into.get(place, 0) + values.astype(np.int64)


def _carried(digits: Mapping[int, np.ndarray]) -> Digits:
  """The one way to write the same values with digits in [-2^19, 2^19) and no place of zeros."""
  if not digits:
    return {}
  result, carry, place, last = {}, 0, min(digits), max(digits)
  while place <= last or np.any(carry):
    total = digits.get(place, 0) + carry
    carry = (total + (1 << (BITS - 1))) >> BITS
    digit = total - (carry << BITS)
    if np.any(digit):
      result[place] = digit
    place += 1
  return result


def _value(digits: Digits, shape: Sequence[Any]) -> np.ndarray:
  """float64; the lowest places first, so that what rounds is the last addition."""
  value = np.zeros(tuple(shape))
  for place in sorted(digits):
    value += digits[place] * 2.0 ** (BITS * place)
  return value


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  total = hashlib.sha256(FORMAT.encode())
  for name in sorted(arrays):
    array = np.asarray(arrays[name])
    array = array.astype(array.dtype.newbyteorder("<"))
    total.update(f"{name} {array.dtype.str} {array.shape}\0".encode() + array.tobytes())
  return total.hexdigest()


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Moments:
  moments = Moments(int(arrays["width"]))
  moments.count = int(arrays["count"])
  upper = np.triu_indices(moments.width)
  sums, products = {}, {}
  for place, row in zip(arrays["sums_places"], arrays["sums"], strict=True):
    sums[int(place)] = row.astype(np.int64).reshape(moments.width)
  for place, row in zip(arrays["products_places"], arrays["products"], strict=True):
    square = np.zeros((moments.width, moments.width), np.int64)
    square[upper] = row
    products[int(place)] = np.where(np.tri(moments.width, k=-1, dtype=bool), square.T, square)
  moments._sums, moments._products = _carried(sums), _carried(products)
  return moments


def _row(arrays: Mapping[str, np.ndarray], name: str, place: int) -> np.ndarray:
  """The digits of one place, zeros where there are none."""
  (found,) = np.nonzero(arrays[f"{name}_places"] == place)
  return arrays[name][found[0]] if len(found) else np.zeros(arrays[name].shape[1:], np.int32)


def _sum_over_processes(values: np.ndarray) -> np.ndarray:
  # 32 bits are what jax gathers unless told otherwise; digits have 20, their sum needs more.
  return multihost_utils.process_allgather(values.astype(np.int32)).astype(np.int64).sum(axis=0)
