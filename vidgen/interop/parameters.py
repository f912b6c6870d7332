"""Parameters on their way out: named numpy arrays, where they come from, back into a tree."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.train.items import flatten, unflatten

CHUNK = 1 << 22  # elements


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where exported weights come from: the step, "ema" or "params", the digests recorded there."""

  step: int
  weights: str
  config_digest: str
  params_digest: str


def named(params: Any) -> dict[str, np.ndarray]:
  """Every array on the host, by its path such as "network/patch_in/bias", sorted by it."""
  leaves = flatten(params)
  return {name: np.ascontiguousarray(leaves[name]) for name in sorted(leaves)}


def matched(arrays: Mapping[str, np.ndarray], *, like: Any, where: str) -> Any:
  """`arrays` in the structure of the (abstract) tree `like`.

  Raises:
    CheckpointError: names, shapes or dtypes differ; every difference is listed.
  """
  check_same(
    {name: _spell(array) for name, array in arrays.items()},
    {name: _spell(leaf) for name, leaf in flatten(like).items()},
    where=where,
  )
  return unflatten(like, dict(arrays))


def check_same(
  have: Mapping[str, str],
  want: Mapping[str, str],
  *,
  where: str,
  signs: str = "- in the file, + in the model",
) -> None:
  """Raises CheckpointError when two tables of names and their facts differ, with both sides."""
  lines = [
    f"  {sign} {name} {spec[name]}".rstrip()
    for name in sorted(want.keys() | have.keys())
    if want.get(name) != have.get(name)
    for sign, spec in (("-", have), ("+", want))
    if name in spec
  ]
  if lines:
    listed = "\n".join(lines)
    raise CheckpointError(f"{where} does not match the model ({signs}):\n{listed}")


def check_finite(arrays: Mapping[str, np.ndarray], *, where: str) -> None:
  """Raises CheckpointError, naming the arrays, when a value is NaN or infinite."""
  bad = [name for name, array in arrays.items() if not _is_finite(array)]
  if bad:
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    raise CheckpointError(f"{where}: not finite: {', '.join(bad[:4])}{more}")


def _is_finite(array: np.ndarray) -> bool:
  flat = np.asarray(array).reshape(-1)
  parts = range(0, flat.size, CHUNK)  # a mask of the whole would be a quarter of its memory
  return all(np.isfinite(flat[at : at + CHUNK]).all() for at in parts)


def _spell(leaf: Any) -> str:
  return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
