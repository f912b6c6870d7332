"""Work over many items, in blocks, by all devices of all processes.

A block is so many items in a row, whoever works on it. What shares a batch with an item therefore
follows from the items alone: neither devices nor processes change a bit of any result.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vidgen.inputs.quarantine import BadSample
from vidgen.train.together import agree


@dataclasses.dataclass(frozen=True)
class Block:
  """What came of some items in a row: which could be read, the result, and why others could not."""

  indices: tuple[int, ...]
  result: Any
  problems: tuple[tuple[int, str], ...]


def each_block(
  count: int,
  *,
  read: Callable[[int], Any],
  work: Sequence[Callable[[list[int], list[Any]], Any]],
  size: int,
) -> Iterator[Block]:
  """This process's share of items 0 to `count`, in blocks of `size`, in order.

  `read(i)` gives an item or raises BadSample; each of `work` (one a device) takes the indices and
  items of a block. A block more than there are devices is held at a time.
  """
  starts = range(0, count, size)[jax.process_index() :: jax.process_count()]
  waiting: collections.deque[Future[Block]] = collections.deque()

  def one(start: int, act: Callable[[list[int], list[Any]], Any]) -> Block:
    indices, items, problems = [], [], []
    for index in range(start, min(start + size, count)):
      try:
        items.append(read(index))
        indices.append(index)
      except BadSample as bad:
        problems.append((index, bad.reason))
    return Block(tuple(indices), act(indices, items) if items else None, tuple(problems))

  with ThreadPoolExecutor(len(work) + 1) as pool:
    try:
      for number, start in enumerate(starts):
        waiting.append(pool.submit(one, start, work[number % len(work)]))
        if len(waiting) > len(work):
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


def share_of(count: int, *, size: int) -> int:
  """How many of `count` items are this process's."""
  starts = range(0, count, size)[jax.process_index() :: jax.process_count()]
  return sum(min(size, count - start) for start in starts)


def together(act: Callable[[], Any]) -> Any:
  """What `act` returns; where it fails on one process, it fails on all."""
  error, result = None, None
  try:
    result = act()
  except Exception as caught:
    error = caught
  error = agree(error)
  if error is not None:
    raise error
  return result


def gathered_rows(rows: np.ndarray) -> np.ndarray:
  """The rows [n, ...] of all processes, one process after another; those of one alone as they are.

  Processes may have different numbers of rows, of the same shape.
  """
  if jax.process_count() == 1:
    return rows
  counts = np.asarray(multihost_utils.process_allgather(np.int64(len(rows)))).reshape(-1)
  if not counts.max():
    return rows
  padding = [(0, int(counts.max()) - len(rows)), *[(0, 0)] * (rows.ndim - 1)]
  # Bytes travel as they are; a gather of float64 would round where 64 bits are off.
  whole = np.ascontiguousarray(np.pad(rows, padding))
  sent = whole.reshape(len(whole), -1).view(np.uint8)
  parts = np.asarray(multihost_utils.process_allgather(sent))
  parts = np.ascontiguousarray(parts).view(rows.dtype).reshape(len(counts), *whole.shape)
  return np.concatenate([part[:n] for part, n in zip(parts, counts, strict=True)])


def gathered_json(tree: Any) -> list[Any]:
  """The trees of all processes, in their order."""
  if jax.process_count() == 1:
    return [tree]
  sent = np.frombuffer(json.dumps(tree).encode(), np.uint8)
  lengths = np.asarray(multihost_utils.process_allgather(np.int64(len(sent)))).reshape(-1)
  rows = gathered_rows(sent[:, None])[:, 0]
  ends = np.cumsum(lengths)
  return [json.loads(rows[e - n : e].tobytes()) for e, n in zip(ends, lengths, strict=True)]
