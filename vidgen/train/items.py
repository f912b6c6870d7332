"""A training state as the items of a checkpoint: flat arrays by path, written and read by Orbax.

An item is a dict from a path such as "blocks/kernel" to an array; on disk it is the Orbax tree of
nested dicts that the path spells, which any Orbax reader opens. Items are read one array or many at
a time, into numpy or into any sharding.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

STATE_ITEMS = ("params", "ema", "opt_state")  # fields of the state; all others are counters
ITEMS = (*STATE_ITEMS, "counters")
Arrays = dict[str, Any]  # path -> array, or its abstract value


def split(state: Any) -> dict[str, Any]:
  """The trees of a state by item; `state` is a dataclass or a mapping."""
  if dataclasses.is_dataclass(state):
    state = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  trees = {item: state[item] for item in STATE_ITEMS if item in state}
  return {**trees, "counters": {k: v for k, v in state.items() if k not in trees}}


def join(like: Any, trees: Mapping[str, Any]) -> Any:
  """The inverse of `split`, as a state of the kind of `like`."""
  fields = {item: tree for item, tree in trees.items() if item != "counters"} | trees["counters"]
  if dataclasses.is_dataclass(like) and not isinstance(like, type):
    return dataclasses.replace(like, **fields)
  return fields


def flatten(tree: Any) -> Arrays:
  """A tree as path -> leaf, such as {"blocks/kernel": array}; empty nodes vanish.

  Raises:
    ValueError: a leaf is not an array (typed keys are not), or has no path of its own.
  """
  leaves: Arrays = {}
  for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    path = jax.tree_util.keystr(keys, simple=True, separator="/")
    if isinstance(leaf, int | float | np.generic):
      leaf = np.asarray(leaf)
    if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
      raise ValueError(f"{path}: {type(leaf).__name__} is not an array that can be saved")
    if path in leaves or path.count("/") != len(keys) - 1 or "." in path:
      raise ValueError(f"{path}: the path is not unique, or has '/' or '.' within a part of it")
    leaves[path] = leaf
  return leaves


def unflatten(like: Any, leaves: Arrays) -> Any:
  """The tree of the structure of `like` whose `flatten` is `leaves`."""
  return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in flatten(like)])


def nest(leaves: Arrays) -> dict:
  """Nested dicts, as the parts of the paths say."""
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def to_host(leaves: Arrays) -> Arrays:
  """One copy of every array to the host; an array spread over processes stays where it is."""
  here = {path: leaf for path, leaf in leaves.items() if not spread(leaf)}
  copy = jax.default_backend() == "cpu"  # there the "copy" is a view of memory that may be donated
  found = {k: np.array(v) if copy else np.asarray(v) for k, v in jax.device_get(here).items()}
  return {**leaves, **found}


def host_copy(array: Any) -> np.ndarray:
  """The whole of an array that this process can see, on the host.

  Through a copy on the device: an array keeps what was once fetched of it, as long as it lives.
  """
  return array if isinstance(array, np.ndarray) else np.asarray(jnp.copy(array))


def spread(array: Any) -> bool:
  """Whether no process can see the whole of this array."""
  return isinstance(array, jax.Array) and not (
    array.is_fully_addressable or array.is_fully_replicated
  )


def shared(leaf: Any) -> bool:
  """Whether an abstract array is to lie on devices of several processes."""
  sharding = getattr(leaf, "sharding", None)
  return sharding is not None and not sharding.is_fully_addressable


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
  """The abstract value of a leaf, without its sharding."""
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def save_handler() -> ocp.CompositeCheckpointHandler:
  """What writes all items of a checkpoint: arrays as trees, data position and config as JSON."""
  registry = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),  # ours already
    (jax.Array, ocp.type_handlers.ArrayHandler()),
  )
  handlers: dict[str, Any] = {
    item: ocp.PyTreeCheckpointHandler(type_handler_registry=registry) for item in ITEMS
  }
  return ocp.CompositeCheckpointHandler(
    **handlers,
    config=ocp.JsonCheckpointHandler("config.json"),
    data=ocp.JsonCheckpointHandler("position.json"),
  )


def save_args(arrays: Mapping[str, Arrays], *, data: dict, config: dict) -> ocp.args.Composite:
  """What `save_handler` is to write; items without arrays (SGD's state) are left out."""
  trees = {item: ocp.args.PyTreeSave(nest(leaves)) for item, leaves in arrays.items() if leaves}
  return ocp.args.Composite(data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config), **trees)


def read_arrays(directory: Path, leaves: Arrays) -> Arrays:
  """Reads `leaves` of the item in `directory`, each into the sharding it has, or into numpy.

  Without barriers between processes, so that one of them may read alone.
  """
  restore_args = {
    path: ocp.RestoreArgs(restore_type=np.ndarray)
    if getattr(leaf, "sharding", None) is None
    else ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    for path, leaf in leaves.items()
  }
  restored = ocp.PyTreeCheckpointHandler().restore(
    epath.Path(directory),
    args=ocp.args.PyTreeRestore(
      item=nest({path: struct(leaf) for path, leaf in leaves.items()}),
      restore_args=nest(restore_args),
      partial_restore=True,
    ),
  )
  found = flatten(restored)
  for path, leaf in leaves.items():
    if not isinstance(found.get(path), jax.Array | np.ndarray):
      raise ValueError(f"{path} is not there")
    if found[path].shape != leaf.shape or found[path].dtype != leaf.dtype:
      raise ValueError(f"{path} is {found[path].dtype}{found[path].shape}")
  return found


def read_data(directory: Path) -> list[dict]:
  """What lies there of data positions; files, in the order of their names."""
  return [json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))]
