"""The data of a run, as the loop sees them: `vidgen.inputs` on one data set."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen.inputs.choice import choose_samples
from vidgen.inputs.config import InputConfig
from vidgen.inputs.latents import cached_autoencoder
from vidgen.inputs.pipeline import adopt_state, describe_data, make_dataset
from vidgen.inputs.sources import NoSuchSplit, open_source
from vidgen.inputs.streams import open_streams
from vidgen.inputs.text import make_tokenizer
from vidgen.train.programs import Decode, HostBatch
from vidgen.train.rows import even_rows

# How held-out samples are read: nothing of them is drawn.
STILL: dict[str, Any] = {
  "caption_dropout": 0.0,
  "shuffle": False,
  "flip": 0.0,
  "temporal_crop": "center",
  "spatial_crop": "center",
}


class ShardData:
  """Batches of a data set on disk for this process; what the loop's `Data` asks for.

  `rows` of every global batch are made (default: an even part, by process). Text streams are
  embeddings where they are cached, and else token ids, for `encoded.EncodedData` to encode.
  """

  def __init__(
    self,
    config: InputConfig,
    directory: str,
    *,
    batch_size: int,
    seed: int,
    workdir: str | Path,
    rows: Sequence[int] | None = None,
    autoencoder: Mapping[str, Any] | None = None,
  ):
    """Latents, where they are cached, must be those of the `autoencoder` of this identity.

    None takes the cache's word for whose they are.
    """
    self._rows = even_rows(batch_size) if rows is None else rows
    self._config, self._directory, self._seed = config, directory, seed
    self._batch_size = batch_size
    self._streams = open_streams(config, directory)
    if config.latents and autoencoder is None:
      autoencoder = cached_autoencoder(config, directory)
    self._autoencoder = autoencoder
    self._held_out: list[str] = []  # buckets that have such clips
    held_out: dict[str, Any] = {}
    for bucket in config.buckets:
      alone = dataclasses.replace(config, buckets=(bucket,))
      try:
        held_out |= describe_data(alone, directory, split="held_out")
        self._held_out.append(bucket.name)
      except NoSuchSplit as error:
        held_out[bucket.subset] = None
        if jax.process_index() == 0:
          print(f"warning: nothing is held out for bucket {bucket.name}: {error}", file=sys.stderr)
    self._leave_out_empty()
    self._description = {"train": describe_data(config, directory), "held_out": held_out}
    if config.encoders:
      self._description["encoders"] = {n: dict(i) for n, i in self._streams.identities.items()}
    if autoencoder is not None:
      self._description["autoencoder"] = dict(autoencoder)
    self._quarantine = str(Path(workdir) / "quarantine.jsonl")
    dataset = make_dataset(
      config,
      directory,
      batch_size=batch_size,
      seed=seed,
      rows=self._rows,
      quarantine_path=self._quarantine,
      streams=self._streams,
      autoencoder=self._autoencoder,
    )
    if jax.process_index() == 0:
      for note in dataset.notes:
        print(f"warning: {note}", file=sys.stderr)
    self._bad = dataset.quarantine
    self._iterator: Any = iter(dataset)

  def _leave_out_empty(self) -> None:
    """Leaves out buckets for which is none of the samples that are held out."""
    subsets = {b.subset for b in self._config.buckets if b.name in self._held_out}
    sources = {
      subset: open_source(self._directory, subset=subset, split="held_out")
      for subset in subsets
      if self._config.chooses(subset)
    }
    for subset, choice in choose_samples(self._config, self._directory, sources=sources).items():
      empty = [name for name, numbers in choice.chosen.items() if not len(numbers)]
      self._held_out = [name for name in self._held_out if name not in empty]
      if empty and jax.process_index() == 0:
        why = f"; in no bucket are {told}" if (told := choice.told(sources[subset])) else ""
        print(f"warning: nothing is held out for {', '.join(empty)}{why}", file=sys.stderr)

  @property
  def names(self) -> frozenset[str]:
    """The arrays of a batch, as `inputs.loader` makes them."""
    streams = (name for stream in self._config.encoders for name in (stream, f"{stream}_mask"))
    pictures = "latents" if self._config.latents else "video"
    rows = {"segments"} if any(bucket.packed for bucket in self._config.buckets) else set()
    return frozenset({pictures, "text", "text_mask", "fps", *streams, *rows})

  def __next__(self) -> HostBatch:
    """The next batch of this process."""
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """The position between two batches, and what it depends on; the same on every process."""
    return self._iterator.get_state()

  def set_state(self, state: dict[str, Any], *, changed: bool) -> None:
    """Goes to a position; with `changed`, one of another pipeline, after as many examples.

    Raises:
      CheckpointError: without `changed`, the position is one of another pipeline.
    """
    if changed:
      state = adopt_state(state, self._iterator.get_state())
    self._iterator.set_state(state)

  @property
  def bad_samples(self) -> int:
    """Distinct bad samples so far, of all processes and of earlier starts."""
    return self._bad.count()

  def describe(self) -> dict[str, Any]:
    """The shards of both splits: sizes, counts, digests; what makes the text streams."""
    return self._description

  def held_out(self, batches: int) -> list[HostBatch]:
    """The first batches of the held-out split, at least one a bucket; none without such a split.

    In the order of the shards, from the start again at their end, cut in the middle, every caption
    kept: nothing is drawn.
    """
    each = max(1, batches // max(1, len(self._held_out)))
    return [
      batch
      for bucket in self._held_out
      for batch in self._read(bucket, each, self._batch_size, rows=self._rows)
    ]

  def examples(self, count: int) -> HostBatch | None:
    """The first held-out examples, the same on every process; None if there is no such split."""
    for bucket in self._held_out:
      return self._read(bucket, 1, count, rows=None)[0]
    return None

  def _read(
    self, bucket: str, batches: int, batch_size: int, *, rows: Sequence[int] | None
  ) -> list[HostBatch]:
    dataset = make_dataset(
      dataclasses.replace(self._config, workers=0, **STILL),
      self._directory,
      bucket=bucket,
      batch_size=batch_size,
      seed=self._seed,
      split="held_out",
      quarantine_path=self._quarantine,
      rows=rows,
      streams=self._streams,
      autoencoder=self._autoencoder,
    )
    iterator: Any = iter(dataset)
    try:
      return [next(iterator) for _ in range(batches)]
    finally:
      iterator.close()

  @property
  def decode(self) -> Decode | None:
    """Nothing: there is no autoencoder here."""
    return None

  def captions(self, examples: HostBatch) -> list[str]:
    """The texts of examples, of packed rows the clip's; empty where there are no ids."""
    count = len(next(iter(examples.values())))
    if "text" not in examples or examples["text"].dtype != np.int32:
      return [""] * count
    tokenizer = make_tokenizer(self._config.tokenizer)
    ids = np.asarray(examples["text"])
    first = ids if ids.ndim == 2 else ids[:, 0]
    return [tokenizer.decode(row.tolist()) for row in first]

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._iterator.close()


class DataAround:
  """Data with other data within, which keep the position, the texts and count of bad samples."""

  def __init__(self, data: Any):
    self._data = data

  @property
  def bad_samples(self) -> int:
    """Distinct bad samples so far, of all processes and of earlier starts."""
    return self._data.bad_samples

  def get_state(self) -> dict[str, Any]:
    """As of the data within."""
    return self._data.get_state()

  def set_state(self, state: dict[str, Any], *, changed: bool) -> None:
    """As of the data within."""
    self._data.set_state(state, changed=changed)

  @property
  def decode(self) -> Decode | None:
    """As of the data within."""
    return self._data.decode

  def captions(self, examples: HostBatch) -> list[str]:
    """The texts of examples."""
    return self._data.captions(examples)

  def close(self) -> None:
    """Stops threads and worker processes."""
    self._data.close()
