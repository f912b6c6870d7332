"""Which rows of the global batch a process makes: those that its devices hold."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vidgen.errors import ConfigError
from vidgen.nn.partition import Rules, partition_spec


def process_rows(batch_size: int, *, mesh: Mesh, rules: Rules) -> list[int]:
  """Rows of a global batch that devices of this process hold, ascending.

  Processes that share a copy of the batch (a mesh axis over several hosts that splits tokens or
  matrices) have the same rows; rows of one process need not be neighbours.
  """
  layout = partition_spec((batch_size,), ("batch",), mesh=mesh.shape, rules=rules)
  held = np.zeros(batch_size, bool)
  for index in NamedSharding(mesh, layout).addressable_devices_indices_map((batch_size,)).values():
    held[index] = True
  return np.flatnonzero(held).tolist()


def even_rows(batch_size: int) -> list[int]:
  """As `process_rows` on a mesh that splits the batch over all devices, in their order.

  Raises:
    ConfigError: the batch does not divide.
  """
  each, rest = divmod(batch_size, jax.process_count())
  if rest:
    raise ConfigError(
      f"a batch of {batch_size} does not divide over {jax.process_count()} processes"
    )
  return list(range(jax.process_index() * each, (jax.process_index() + 1) * each))


def on_host(batch: Mapping[str, Any]) -> dict[str, Any]:
  """The batch with this process's rows of what lies on the devices."""
  return {
    name: _rows(array) if isinstance(array, jax.Array) else array for name, array in batch.items()
  }


def _rows(array: jax.Array) -> np.ndarray:
  """The rows of `array`, split over its first axis alone, that devices of this process hold."""
  shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
