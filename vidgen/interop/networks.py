"""A network's parameters from files, laid out over a mesh by the names of their axes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vidgen.dist.rules import DEFAULT_RULES, state_shardings
from vidgen.interop.layout import Layout
from vidgen.interop.tensors import Weights
from vidgen.interop.weight_cache import cached_params
from vidgen.nn.partition import Rules, axes_of, unboxed


@dataclasses.dataclass(frozen=True)
class AbstractParams:
  """Shapes and dtypes of a network's parameters, and the logical names of their axes."""

  shapes: Any
  axes: Any


def abstract_params(network: Any) -> AbstractParams:
  """What `network` (with its `example()` of inputs) has for parameters, without making any."""
  variables = jax.eval_shape(network.init, jax.random.key(0), *network.example())
  return AbstractParams(unboxed(variables["params"]), axes_of(variables["params"]))


def load_network(
  weights: Weights,
  network: Any,
  layout: Layout,
  *,
  mesh: Mesh | None = None,
  rules: Rules = DEFAULT_RULES,
  dtype: str = "float32",
  cache: str | Path | None = None,
) -> Any:
  """The parameters of `network`: on the default device, or over `mesh` as `rules` say.

  Raises:
    CheckpointError: `weights` are damaged, not finite, or not those of the network.
  """
  abstract = abstract_params(network)
  shardings = None
  if mesh is not None:
    shapes = abstract.shapes
    shardings = state_shardings(shapes, abstract.axes, params=shapes, mesh=mesh, rules=rules)
  return cached_params(
    weights, layout, like=abstract.shapes, shardings=shardings, dtype=dtype, cache=cache
  )
