"""How another library lays out a network's weights, read both ways.

A `Layout` is data: for each of our arrays the names it has there, and an einops pattern from theirs
to ours. Loading compares all names and shapes first, and then reads array by array straight into
its sharding, so that the host never holds a second copy of the whole.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from vidgen.errors import CheckpointError
from vidgen.interop.parameters import check_finite, check_same
from vidgen.interop.weight_files import Weights
from vidgen.train.items import flatten, unflatten

ALIGNMENT = 64  # bytes


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one of our arrays is in the other layout.

  `names` are theirs; several are one a layer and are stacked along our first axis. `pattern` is
  einops', from theirs (of one layer) to ours, such as "(n k) d -> d n k"; "" leaves it as it is.
  `stacked` is for the one name of a network of one layer, whose first axis has one entry.
  """

  names: tuple[str, ...]
  pattern: str = ""
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  stacked: bool = False

  @property
  def layered(self) -> bool:
    """Whether our first axis counts the names."""
    return self.stacked or len(self.names) > 1


@dataclasses.dataclass(frozen=True)
class Layout:
  """The whole of a network: a source for each of our paths, such as "blocks/attention/query".

  `ignored` are regular expressions that match the whole of a name of theirs which holds nothing of
  ours. `tied` maps a second name of an array to its first, as in files that hold an embedding
  twice, or under the second name only.
  """

  sources: Mapping[str, Source]
  ignored: tuple[str, ...] = ()
  tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load_params(
  weights: Weights, layout: Layout, *, like: Any, shardings: Any = None, dtype: str = "float32"
) -> Any:
  """The parameters of the structure of `like` (abstract, unboxed), read from `weights`.

  `shardings` is one sharding, a tree of them like `like`, or None for the default device. Floating
  arrays become `dtype`; others keep their own.

  Raises:
    CheckpointError: names or shapes differ (all are listed, both ways), a value is not finite in
      `dtype`, or the file is damaged.
  """
  abstract = flatten(like)
  chosen = _names_there(weights, layout)
  _check(weights, layout, abstract, chosen)
  if shardings is None:
    shardings = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if isinstance(shardings, jax.sharding.Sharding):
    places: Mapping[str, Any] = dict.fromkeys(abstract, shardings)
  else:
    places = dict(zip(abstract, jax.tree.leaves(shardings), strict=True))
  arrays = {}
  for path, leaf in abstract.items():
    read = _reader(weights, layout.sources[path], path, chosen, target_dtype(leaf.dtype, dtype))
    arrays[path] = jax.make_array_from_callback(tuple(leaf.shape), places[path], read)
    jax.block_until_ready(arrays[path])  # else copies of many arrays wait for their transfer
  return unflatten(like, arrays)


def read_array(
  weights: Weights, layout: Layout, path: str, *, like: Any, dtype: str, index: Any
) -> np.ndarray:
  """One of our arrays, or the part of it at `index`, on the host; see `load_params`."""
  chosen = _names_there(weights, layout)
  target = target_dtype(like.dtype, dtype)
  return _reader(weights, layout.sources[path], path, chosen, target)(index)


def check_layout(weights: Weights, layout: Layout, *, like: Any) -> None:
  """Raises CheckpointError, with all that differs, unless `weights` have what the layout asks."""
  _check(weights, layout, flatten(like), _names_there(weights, layout))


def to_theirs(params: Any, layout: Layout) -> dict[str, np.ndarray]:
  """Their arrays by their names, from parameters of ours: the inverse of `load_params`.

  Raises:
    CheckpointError: the parameters are not those of the layout, or two that it ties differ.
  """
  arrays = flatten(params)
  check_same(
    dict.fromkeys(arrays, ""),
    dict.fromkeys(layout.sources, ""),
    where="the parameters",
    signs="- in the parameters, + in the layout",
  )
  theirs: dict[str, np.ndarray] = {}
  for path, source in layout.sources.items():
    ours = np.asarray(arrays[path])
    for name, layer in zip(source.names, _layers(ours, source), strict=True):
      array = np.array(_rearranged(layer, source, path, inverse=True), order="C")
      if name in theirs and not np.array_equal(theirs[name], array):
        raise CheckpointError(f"{path}: {name} is tied to another array, which differs")
      theirs[name] = array
  return theirs


def target_dtype(ours: Any, dtype: str) -> np.dtype:
  """The dtype of an array of dtype `ours` in parameters of `dtype`: integers keep theirs."""
  return np.dtype(jnp.dtype(dtype)) if jnp.issubdtype(ours, jnp.floating) else np.dtype(ours)


def _names_there(weights: Weights, layout: Layout) -> dict[str, str]:
  """By a name of the layout, the name that the file has it under, where it is a tied one."""
  return {
    first: second
    for second, first in layout.tied.items()
    if first not in weights.specs and second in weights.specs
  }


def _check(
  weights: Weights, layout: Layout, abstract: Mapping[str, Any], chosen: Mapping[str, str]
) -> None:
  """That our paths are the layout's, and the file's names and shapes are what they ask for."""
  check_same(
    dict.fromkeys(layout.sources, ""),
    dict.fromkeys(abstract, ""),
    where="the layout",
    signs="- in the layout, + in the model",
  )
  want = {}
  for path, source in layout.sources.items():
    shape = tuple(abstract[path].shape)
    if source.layered:
      if not shape or shape[0] != len(source.names):
        raise CheckpointError(f"{path}: {len(source.names)} layers do not stack to shape {shape}")
      shape = shape[1:]
    layer = np.broadcast_to(np.zeros((), np.bool_), shape)  # takes no memory, whatever the shape
    spelled = _spell(_rearranged(layer, source, path, inverse=True).shape)
    want |= {chosen.get(name, name): spelled for name in source.names}
  have = {
    name: _spell(spec.shape)
    for name, spec in weights.specs.items()
    if name in want
    or not (name in layout.tied or any(re.fullmatch(p, name) for p in layout.ignored))
  }
  check_same(have, want, where=weights.where)


def _reader(
  weights: Weights, source: Source, path: str, chosen: Mapping[str, str], dtype: np.dtype
) -> Callable[[Any], np.ndarray]:
  """What gives the part of our array at an index, reading the layers it needs and no others."""

  def part(name: str, index: Sequence[slice]) -> np.ndarray:
    theirs = weights.read(chosen.get(name, name))
    return np.asarray(_rearranged(theirs, source, path, inverse=False)[tuple(index)])

  def read(index: Any) -> np.ndarray:
    names, rest = source.names, index
    if source.layered:
      names, rest = source.names[index[0]], index[1:]
    first = part(names[0], rest)
    block = _aligned((len(names), *first.shape), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
      for row, name in enumerate(names):
        block[row] = first if row == 0 else part(name, rest)
    block = block if source.layered else block[0, ...]
    check_finite({f"{path} ({source.names[0]})": block}, where=weights.where)
    return block

  return read


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """An array that begins where a CPU device takes it as it is, without a copy."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + ALIGNMENT, np.uint8)
  begin = -memory.ctypes.data % ALIGNMENT
  return memory[begin : begin + size].view(dtype).reshape(tuple(shape))


def _layers(ours: np.ndarray, source: Source) -> Sequence[np.ndarray]:
  return list(ours) if source.layered else [ours]


def _rearranged(array: np.ndarray, source: Source, path: str, *, inverse: bool) -> np.ndarray:
  if not source.pattern:
    return array
  left, right = (side.strip() for side in source.pattern.split("->"))
  pattern = f"{right} -> {left}" if inverse else f"{left} -> {right}"
  try:
    return einops.rearrange(array, pattern, **source.sizes)
  except einops.EinopsError as error:
    line = str(error).strip().splitlines()[-1].strip()
    raise CheckpointError(f"{path}: shape {array.shape} is not of {pattern!r}: {line}") from error


def _spell(shape: Sequence[int]) -> str:
  return f"[{','.join(map(str, shape))}]"
