"""From logical axis names to shardings: the rules are data in the config.

`nn.partition.partition_spec` reads the rules. A parameter's dimension that does not divide is left
whole, and `check_sharded` bounds how much that may be. A batch is never left whole: what does not
divide there is an error.

Activations get their layout from `nn.partition.constrain` at block boundaries, under the same
rules. Do not leave it out: with parameters split over several axes and activations left to the
compiler, XLA has been seen (jax 0.10.2) to compute wrong gradients without a word.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidgen.errors import ConfigError
from vidgen.nn.partition import Rules, mesh_axes, partition_spec
from vidgen.systems.stage import ArraySpec

# What a config means that gives no rules.
DEFAULT_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
  ("batch", ("data", "fsdp")),
  ("tokens", ("context", "tensor")),
  ("sequence", "context"),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("embed_out", "tensor"),
)


def check_rules(rules: Rules, axes: Sequence[str]) -> None:
  """Raises ConfigError when a rule names a mesh axis that is none of `axes`."""
  for logical, target in rules:
    for axis in mesh_axes(target):
      if axis not in axes:
        known = ", ".join(axes)
        raise ConfigError(f"config.rules: {logical!r} -> {axis!r}: mesh axes are {known}")


def is_axes(leaf: Any) -> bool:
  """Whether this is the axes of one array, a leaf of a tree of them."""
  return isinstance(leaf, tuple) and all(a is None or isinstance(a, str) for a in leaf)


def path_name(path: tuple[Any, ...]) -> str:
  """The key path of a parameter as text, such as "blocks/attention/query"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def axes_by_path(params: Any, logical_axes: Any) -> dict[tuple[Any, ...], tuple[str | None, ...]]:
  """The logical axes of every parameter by its key path; `params` may be abstract.

  Raises:
    ConfigError: the two trees differ; the message has their names (- no axes, + no parameter).
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  named = jax.tree_util.tree_leaves_with_path(logical_axes, is_leaf=is_axes)
  have, want = ({path_name(path) for path, _ in tree} for tree in (named, leaves))
  if have != want:
    raise ConfigError(
      "logical axes do not match the parameters: "
      + ", ".join(
        [f"- {name}" for name in sorted(want - have)] + [f"+ {n}" for n in sorted(have - want)]
      )
    )
  by_name = {path_name(path): axes for path, axes in named}
  return {tuple(path): by_name[path_name(path)] for path, _ in leaves}


def state_shardings(state: Any, logical_axes: Any, *, params: Any, mesh: Mesh, rules: Rules) -> Any:
  """A NamedSharding for every array of an abstract training state.

  An array whose key path ends in a parameter's path (its average, its moments) lies as that
  parameter does; one with a single dimension less (Adafactor's factors) as what is left of it; any
  other (counters) is on every device.
  """
  axes = axes_by_path(params, logical_axes)
  shapes = {tuple(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(params)}

  def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    for start in range(len(path)):
      names = axes.get(path[start:])
      if names is not None:
        kept = _kept_dimensions(shapes[path[start:]], leaf.shape)
        if kept is not None:
          names = [names[i] for i in kept]
          spec = partition_spec(leaf.shape, names, mesh=mesh.shape, rules=rules)
          return NamedSharding(mesh, spec)
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(sharding, state)


def _kept_dimensions(full: Sequence[int], shape: Sequence[int]) -> list[int] | None:
  dimensions = list(range(len(full)))
  if tuple(full) == tuple(shape):
    return dimensions
  for dropped in dimensions:
    kept = [i for i in dimensions if i != dropped]
    if [full[i] for i in kept] == list(shape):
      return kept
  return None


def batch_shardings(
  spec: Mapping[str, ArraySpec], *, mesh: Mesh, rules: Rules
) -> dict[str, NamedSharding]:
  """A NamedSharding for every array of a batch.

  Raises:
    ConfigError: a dimension that a rule splits does not divide by the devices of that mesh axis.
  """
  shardings = {}
  for name, array in spec.items():
    for size, logical in zip(array.shape, array.axes, strict=True):
      options = [mesh_axes(t) for n, t in rules if n == logical]
      shards = [math.prod(mesh.shape[a] for a in o) for o in options]
      if shards and all(size % n for n in shards):
        raise ConfigError(
          f"batch {name!r}: {logical} of {size} does not divide over {shards[0]} devices"
          f" ({', '.join(options[0])}); change train.batch_size or config.mesh"
        )
    layout = partition_spec(array.shape, array.axes, mesh=mesh.shape, rules=rules)
    shardings[name] = NamedSharding(mesh, layout)
  return shardings


def check_sharded(state: Any, shardings: Any, *, tolerance: float = 0.02) -> None:
  """The sharding guard: arrays lie as promised, and the promise is near the ideal.

  Raises:
    ConfigError: names the arrays, and says what to change; see `check_promise`.
  """
  flat = jax.tree_util.tree_leaves_with_path(state)
  for (path, array), sharding in zip(flat, jax.tree.leaves(shardings), strict=True):
    if not array.sharding.is_equivalent_to(sharding, array.ndim):
      raise ConfigError(f"{path_name(path)} lies as {array.sharding}, promised was {sharding.spec}")
  check_promise(state, shardings, tolerance=tolerance)


def check_promise(state: Any, shardings: Any, *, tolerance: float = 0.02) -> None:
  """That a device holds at most 1 + `tolerance` times its share of the state (abstract, maybe).

  The ideal is all bytes over the devices of the axes fsdp and tensor; what exceeds it are arrays
  that no rule splits over all of them, such as norms and tables, and which ought to be small.

  Raises:
    ConfigError: names the arrays that cost most, and says what to change.
  """
  flat = jax.tree_util.tree_leaves_with_path(state)
  promised = jax.tree.leaves(shardings)
  if not promised:
    return
  shards = math.prod(promised[0].mesh.shape[axis] for axis in ("fsdp", "tensor"))
  excess, ideal = [], 0.0
  for (path, array), sharding in zip(flat, promised, strict=True):
    size = array.dtype.itemsize
    share = array.size * size / shards
    here = math.prod(sharding.shard_shape(array.shape)) * size
    ideal += share
    excess.append((here - share, path_name(path)))
  over = sum(size for size, _ in excess) / max(ideal, 1.0)
  if over > tolerance:
    largest = ", ".join(name for _, name in sorted(excess, reverse=True)[:3])
    raise ConfigError(
      f"config.rules: a device holds {over:.1%} more of the state than its share (allowed: "
      f"{tolerance:.1%}), most of it {largest}; add rules for their logical axes, choose a mesh "
      f"that divides them, or raise train.unsharded_tolerance"
    )
