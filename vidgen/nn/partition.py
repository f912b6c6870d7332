"""Logical axes: names for the dimensions of parameters and activations, which rules of a config
map to mesh axes. No network names a mesh.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

Rules = Sequence[tuple[str, str | Sequence[str] | None]]


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
  with nn.logical_axis_rules(
    [(n, a if a is None or isinstance(a, str) else tuple(a)) for n, a in rules]
  ):
    yield


def constrain(x: jax.Array, *, axes: Sequence[str | None]) -> jax.Array:
  """`x`, laid out over the mesh as the rules in force say of `axes`; without rules, `x`."""
  return nn.spmd.with_logical_constraint(x, tuple(axes))
