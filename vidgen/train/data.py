"""The data of a run, as the loop sees them: `vidgen.inputs` on one data set."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen.inputs.config import InputConfig
from vidgen.inputs.pipeline import adopt_state, describe_data, make_dataset
from vidgen.inputs.sources import NoSuchSplit
from vidgen.inputs.text import make_tokenizer

HostBatch = Mapping[str, np.ndarray]


class ShardData:
  """Batches of a data set on disk for this process; what the loop's `Data` asks for."""

  def __init__(
    self, config: InputConfig, directory: str, *, batch_size: int, seed: int, workdir: str | Path
  ):
    self._config, self._directory, self._seed = config, directory, seed
    self._batch_size = batch_size
    self._description = {"train": describe_data(config, directory), "held_out": None}
    with contextlib.suppress(NoSuchSplit):  # said when it is asked for
      self._description["held_out"] = describe_data(config, directory, split="held_out")
    self._quarantine = str(Path(workdir) / "quarantine.jsonl")
    self._iterator: Any = iter(
      make_dataset(
        config,
        directory,
        batch_size=batch_size,
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        quarantine_path=self._quarantine,
      )
    )

  def __next__(self) -> HostBatch:
    """The next batch of this process."""
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """The position between two batches, and what it depends on."""
    return self._iterator.get_state()

  def set_state(self, state: dict[str, Any], *, changed: bool) -> None:
    """Goes to a position; with `changed`, one of another pipeline, after as many examples.

    Raises:
      CheckpointError: without `changed`, the position is one of another pipeline.
    """
    if changed:
      state = adopt_state(state, self._iterator.get_state())
    self._iterator.set_state(state)

  def describe(self) -> dict[str, Any]:
    """The shards of both splits: sizes, counts, digests."""
    return self._description

  def held_out(self, batches: int) -> list[HostBatch]:
    """The first batches of the held-out split, which may wrap; none if there is no such split.

    In the order of the shards, cut in the middle, every caption kept: nothing is drawn.
    """
    return self._read(
      batches, self._batch_size, process=jax.process_index(), of=jax.process_count()
    )

  def examples(self, count: int) -> HostBatch | None:
    """The first held-out examples, the same on every process; None if there is no such split."""
    found = self._read(1, count, process=0, of=1)
    return found[0] if found else None

  def _read(self, batches: int, batch_size: int, *, process: int, of: int) -> list[HostBatch]:
    still = dataclasses.replace(
      self._config,
      caption_dropout=0.0,
      shuffle=False,
      flip=0.0,
      temporal_crop="center",
      spatial_crop="center",
      workers=0,
    )
    try:
      dataset = make_dataset(
        still,
        self._directory,
        batch_size=batch_size,
        seed=self._seed,
        split="held_out",
        quarantine_path=self._quarantine,
        process_index=process,
        process_count=of,
      )
    except NoSuchSplit as error:
      if jax.process_index() == 0:
        print(f"warning: nothing is held out: {error}", file=sys.stderr)
      return []
    iterator: Any = iter(dataset)
    try:
      return [next(iterator) for _ in range(batches)]
    finally:
      iterator.close()

  def captions(self, examples: HostBatch) -> list[str]:
    """The texts of examples; empty ones where the batch holds embeddings instead of ids."""
    count = len(next(iter(examples.values())))
    if "text" not in examples or examples["text"].dtype != np.int32:
      return [""] * count
    tokenizer = make_tokenizer(self._config.tokenizer)
    return [tokenizer.decode(ids.tolist()) for ids in examples["text"]]

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._iterator.close()
