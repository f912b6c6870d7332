"""Logical axes: names for the dimensions of parameters and activations, which rules of a config
map to mesh axes. No network names a mesh.

A rule is (logical name, mesh axis | several | None). For each dimension of an array the first rule
of its name is taken whose mesh axes are still free in this array.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

Rules = Sequence[tuple[str, str | Sequence[str] | None]]
Axes = tuple[str, ...]

_RULES: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=())


def unboxed(params: Any) -> Any:
  """The plain tree of arrays of parameters that Linen boxed with the names of their axes."""
  return nn.meta.unbox(params)


def axes_of(params: Any) -> Any:
  """The tree of such parameters with, for each array, the tuple of its axes' names."""
  return jax.tree.map(
    lambda p: tuple(p.names), params, is_leaf=lambda p: isinstance(p, nn.meta.AxisMetadata)
  )


@contextlib.contextmanager
def activation_rules(rules: Rules) -> Iterator[None]:
  """While a program is traced in this context, and under `jax.set_mesh`, `constrain` applies."""
  token = _RULES.set(rules)
  try:
    yield
  finally:
    _RULES.reset(token)


def mesh_axes(target: str | Sequence[str] | None) -> Axes:
  """The mesh axes of a rule's right side."""
  if target is None:
    return ()
  return (target,) if isinstance(target, str) else tuple(target)


def partition_spec(
  shape: Sequence[Any],
  axes: Sequence[str | None],
  *,
  mesh: Mapping[str, int],
  rules: Rules,
  even: bool = True,
) -> PartitionSpec:
  """The layout of one array of `shape` whose dimensions are named `axes`.

  `mesh` is the size of every mesh axis. With `even`, a rule counts only where its devices divide
  the dimension; otherwise it is enough that every device gets something.

  Raises:
    ValueError: the names are not as many as the dimensions.
  """
  if len(shape) != len(axes):
    raise ValueError(f"logical axes {tuple(axes)} do not fit an array of shape {tuple(shape)}")
  used: set[str] = set()
  parts: list[Any] = []
  for size, logical in zip(shape, axes, strict=True):
    part: Axes = ()
    for name, target in rules:
      wanted = mesh_axes(target)
      shards = math.prod(mesh[a] for a in wanted)
      fits = size % shards == 0 if even else size >= shards
      if name == logical and fits and not used & set(wanted):
        part = tuple(a for a in wanted if mesh[a] > 1)
        break
    used.update(part)
    parts.append(part[0] if len(part) == 1 else part or None)
  while parts and parts[-1] is None:
    parts.pop()
  return PartitionSpec(*parts)


def ambient_mesh() -> dict[str, int]:
  """Sizes of the mesh axes that a program traced here may be laid out over; empty for none.

  Within `shard_map` there are none: its body sees one device's part.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or not _RULES.get() or mesh.manual_axes:
    return {}
  return dict(mesh.shape)


def layout(
  shape: Sequence[Any], axes: Sequence[str | None], *, even: bool = True
) -> PartitionSpec | None:
  """The layout of an activation by the rules and the mesh in force; None where there are none."""
  mesh = ambient_mesh()
  return partition_spec(shape, axes, mesh=mesh, rules=_RULES.get(), even=even) if mesh else None


def constrain(x: jax.Array, *, axes: Sequence[str | None]) -> jax.Array:
  """`x`, laid out over the mesh as the rules in force say of `axes`; without rules, `x`.

  A dimension need not divide: XLA pads the last device's part.
  """
  spec = layout(x.shape, axes, even=False)
  return x if spec is None else jax.lax.with_sharding_constraint(x, spec)
