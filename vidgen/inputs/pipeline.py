"""Shards to batches: `make_dataset` and what a resumed run must find unchanged.

Batch n of a run is a function of (config, data set, seed, n) alone: not of workers, threads, cache,
or where the run was stopped. The data order is a list of positions; position k has a sample, by the
shuffle of its epoch, and random numbers of its own. Each process makes the rows of every global
batch that its devices hold: the batch is the same list however many processes share it, and a
position in the data is of the run, not of a process.
"""

import dataclasses
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from vidgen.config import differences, digest, plain
from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.inputs.choice import NoBatch, choose_samples, digest_of, shares
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.latents import cached_autoencoder, open_latents
from vidgen.inputs.loader import Loader, Plan, bucket_seed
from vidgen.inputs.order import shuffled
from vidgen.inputs.packing import image_bucket, image_positions, with_image_buckets
from vidgen.inputs.quarantine import Budget, Quarantine
from vidgen.inputs.sources import open_source
from vidgen.inputs.streams import Streams, open_streams
from vidgen.inputs.workers import InWork, start_worker, starting_workers

ENDLESS = 2**40  # batches of a repeated order; more than any run takes

# what may change between two runs without changing any batch
_SPEED = ("workers", "threads", "prefetch", "cache_bytes", "bad_count", "bad_fraction")
# their digests are known, wherever they lie
_STREAMS = ("encoders", "embeddings", "autoencoder", "latents")
# not of a position that was saved before they were there, unless they are used
_LATER = ("degradation", "prefix", "camera_confidence", "aspect_tolerance", "max_upsampling")
_LATER_OF_BUCKETS = ("group", "min_seconds", "max_seconds", "min_rate", "rate")
_LATER_OF_BUCKETS += ("images", "image_subset", "captions", "cover")


def make_dataset(
  config: InputConfig,
  directory: str,
  *,
  batch_size: int,
  seed: int,
  split: str = "train",
  bucket: str | None = None,
  repeat: bool = True,
  rows: Sequence[int] | None = None,
  quarantine_path: str | None = None,
  streams: Streams | None = None,
  autoencoder: Mapping[str, Any] | None = None,
) -> "Batches":
  """The batches of one process, as numpy arrays: video, text, text_mask, fps (as in `Loader`).

  With text encoders in the config, also their `streams` (default: opened here). Where `latents` are
  read in place of videos, they must be those of the `autoencoder` of this identity (default: of
  whichever made them).

  `batch_size` is global, and `rows` are those of every batch that are made here, in this order
  (default: all). With `bucket`, only batches of that one are made. With `repeat=False` each
  bucket is read once, one bucket after another, and what does not fill a batch is left out. Bad
  samples are replaced by others and written to `quarantine_path`. Buckets that no sample is for are
  left out; the result's `notes` say which.

  Raises:
    ConfigError: the batch is empty, or has no such rows.
    NoBatch: no sample is for any of the buckets, it says why; or all are too few without `repeat`.
    DataError: there is no such data, or, from the iterator, too many bad samples.
  """
  rows = range(batch_size) if rows is None else rows
  if not len(rows) or not 0 <= min(rows) <= max(rows) < batch_size:
    raise ConfigError(f"rows {list(rows)[:8]} of batches of {batch_size}")
  buckets = [b for b in config.buckets if bucket in (None, b.name)]
  drawn = [*buckets, *(image_bucket(b) for b in buckets if b.images)]
  subsets = {
    subset: open_source(directory, subset=subset, split=split)
    for subset in dict.fromkeys(b.subset for b in drawn)
  }
  sources = {b.name: subsets[b.subset] for b in drawn}
  if quarantine_path is None:
    folder = f"vidgen-{uuid.uuid4().hex}"  # made only when there is something to write
    quarantine_path = os.path.join(tempfile.gettempdir(), folder, "quarantine.jsonl")
  total = sum(map(len, subsets.values()))
  budget = Budget(count=config.bad_count, fraction=config.bad_fraction, total=total)
  shards = {shard for source in sources.values() for shard in source.shards}
  quarantine = Quarantine(quarantine_path, budget=budget, shards=shards)
  for source in sources.values():
    for problem in source.problems:
      quarantine.record(problem)
  choices = choose_samples(with_image_buckets(config), directory, sources=subsets)
  for choice in choices.values():
    for bad in choice.bad:
      quarantine.record(bad)
  quarantine.check()
  in_work = InWork() if config.workers else None
  streams = open_streams(config, directory) if streams is None else streams
  latents = {}
  if config.latents:
    whose = cached_autoencoder(config, directory) if autoencoder is None else autoencoder
    latents = open_latents(config, directory, sources=sources, split=split, autoencoder=whose)
  loader = Loader(
    config, sources=sources, quarantine=quarantine, seed=seed, streams=streams, in_work=in_work,
    latents=latents, choices=choices,
  )  # fmt: skip
  chosen = {name: numbers for one in choices.values() for name, numbers in one.chosen.items()}
  for name, cached in latents.items():
    cached.check_whole(chosen.get(name))
  places = {
    name: _Places(
      name, seed=seed, shuffle=config.shuffle, samples=len(source), chosen=chosen.get(name)
    )
    for name, source in sources.items()
  }
  samples = {
    b.name: 0 if b.images and not len(places[image_bucket(b).name]) else len(places[b.name])
    for b in buckets
  }
  if not any(samples.values()):
    raise NoBatch(
      f"data set {directory}: no {split} sample is for {_listed(buckets)}: "
      + "; ".join(
        f"{name}: {one.told(subsets[name]) or 'all are in other buckets'}"
        for name, one in choices.items()
      )
    )
  batches = {b.name: ENDLESS if repeat else samples[b.name] // batch_size for b in buckets}
  used = [b for b in buckets if samples[b.name] and batches[b.name]]
  if not used:
    raise NoBatch(f"data set {directory}: {total} samples do not fill a batch of {batch_size}")
  orders = [
    grain.MapDataset.range(batches[b.name]).map(
      _Order(
        b,
        size=batch_size,
        rows=rows,
        places=places[b.name],
        image_places=places[image_bucket(b).name] if b.images else None,
      )
    )
    for b in used
  ]
  if len(orders) == 1:
    plans = orders[0]
  elif repeat:
    parts = shares(buckets, samples)
    plans = grain.MapDataset.mix(orders, [parts[b.name] for b in used])
  else:
    plans = grain.MapDataset.concatenate(orders)
  identity = {
    "batch_size": batch_size,
    "seed": seed,
    "split": split,
    "repeat": repeat,
    "workers": config.workers,
    "whole_clips": config.cache_bytes > 0,  # decides which damaged clips are found out
    "data": digest({name: source.describe() for name, source in subsets.items()}),
    "inputs": {
      **_used(config, later=_LATER, never=(*_SPEED, *_STREAMS)),
      "buckets": [_used(b, later=_LATER_OF_BUCKETS) for b in config.buckets],
    },
  }
  if chosen:
    identity["chosen"] = {name: digest_of(numbers) for name, numbers in chosen.items()}
  if streams.sources:  # not how they are fed: a cache holds what the encoder makes
    identity["encoders"] = plain(streams.identities)
  return Batches(
    plans.map(loader), config=config, identity=identity, quarantine=quarantine, in_work=in_work,
    notes=[_left_out(b, samples[b.name], split) for b in buckets if b not in used],
  )  # fmt: skip


def _left_out(bucket: Bucket, samples: int, split: str) -> str:
  few = f"{samples} samples do not fill a batch" if samples else f"no {split} sample is for it"
  return f"bucket {bucket.name!r} is left out: {few}"


def _listed(buckets: Sequence[Bucket]) -> str:
  names = [repr(bucket.name) for bucket in buckets]
  return f"bucket {names[0]}" if len(names) == 1 else f"any of the buckets {', '.join(names)}"


def _used(tree: Any, *, later: Sequence[str], never: Sequence[str] = ()) -> dict[str, Any]:
  """Fields of a dataclass as plain JSON: none of `never`, of `later` only what is no default."""
  return {
    f.name: plain(getattr(tree, f.name))
    for f in dataclasses.fields(tree)
    if f.name not in never and not (f.name in later and getattr(tree, f.name) == f.default)
  }


class _Places:
  """The order of a bucket: from positions to samples, all of its source or those `chosen`."""

  def __init__(
    self, bucket: str, *, seed: int, shuffle: bool, samples: int, chosen: np.ndarray | None
  ):
    self.seed = bucket_seed(seed, bucket)
    self.shuffle = shuffle
    self.length = samples if chosen is None else len(chosen)
    self.chosen = chosen

  def __len__(self) -> int:
    return self.length

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """The sample at each position, int64 [n]."""
    places = positions % self.length
    if self.shuffle:
      places = shuffled(self.seed, positions, length=self.length)
    return places if self.chosen is None else self.chosen[places]


class _Order:
  """Turns the number of a batch into what `rows` of its `size` take."""

  def __init__(
    self, bucket: Bucket, *, size: int, rows: Sequence[int], places: _Places,
    image_places: _Places | None,
  ):  # fmt: skip
    self.bucket = bucket
    self.size = size
    self.rows = np.asarray(rows, np.int64)
    self.places, self.image_places = places, image_places

  def __call__(self, number: int) -> Plan:
    positions = number * self.size + self.rows
    plan = Plan(self.bucket.name, positions, self.places(positions))
    if self.image_places is None:
      return plan
    taken = image_positions(positions, images=self.bucket.images)
    return plan._replace(images=self.image_places(taken.ravel()).reshape(taken.shape))


def describe_data(config: InputConfig, directory: str, *, split: str = "train") -> dict[str, Any]:
  """What of the data set a resumed run must find unchanged: shards, sizes, counts, digests."""
  subsets = sorted({bucket.subset for bucket in with_image_buckets(config).buckets})
  return {
    subset: open_source(directory, subset=subset, split=split).describe() for subset in subsets
  }


def state_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Lines `key: old -> new` for all in which two states differ, other than the position."""
  return differences(
    {k: v for k, v in old.items() if k != "position"},
    {k: v for k, v in new.items() if k != "position"},
  )


def adopt_state(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
  """The state in which a changed pipeline goes on after `old`, once its differences are accepted.

  `new` is any state of the changed pipeline. It goes on after as many examples as were consumed;
  with another batch size, rounded down to whole batches.
  """
  return {**new, "position": old["position"] * old["batch_size"] // new["batch_size"]}


class Batches(grain.IterDataset):
  """The batches of `make_dataset`; each iterator starts at the first batch, or where it is set.

  `notes` are lines on buckets that are left out.
  """

  def __init__(
    self,
    batches: grain.MapDataset,
    *,
    config: InputConfig,
    identity: dict[str, Any],
    quarantine: Quarantine,
    in_work: InWork | None,
    notes: Sequence[str] = (),
  ):
    super().__init__()
    self.notes = tuple(notes)
    self.quarantine = quarantine
    self._batches = batches
    self._config = config
    self._identity = identity
    self._in_work = in_work

  def __len__(self) -> int:
    return len(self._batches)

  def __str__(self) -> str:
    return f"Batches({len(self)})"

  def __iter__(self) -> "BatchIterator":
    return BatchIterator(
      self._batches,
      config=self._config,
      identity=self._identity,
      quarantine=self.quarantine,
      in_work=self._in_work,
    )


class BatchIterator(grain.DatasetIterator):
  """Iterator whose whole state is the number of batches taken, and what those were taken from."""

  def __init__(
    self,
    batches: grain.MapDataset,
    *,
    config: InputConfig,
    identity: dict[str, Any],
    quarantine: Quarantine,
    in_work: InWork | None,
  ):
    super().__init__()
    self._batches = batches
    self._config = config
    self._identity = identity
    self._quarantine = quarantine
    self._in_work = in_work
    self._position = 0
    self._unstarted = 0  # worker processes that may not have been started
    self._inner: grain.DatasetIterator | None = None

  def __next__(self) -> dict[str, np.ndarray]:
    if self._position >= len(self._batches):
      raise StopIteration
    if self._inner is None:
      self._inner = self._start()
      self._unstarted = self._config.workers
    try:
      if self._unstarted:  # Grain starts one worker a batch, perhaps from a thread of its own
        self._unstarted -= 1
        with starting_workers():
          batch = next(self._inner)
      else:
        batch = next(self._inner)
    except RuntimeError as error:
      raise self._name_the_dead(error) from error
    self._quarantine.check()
    self._position += 1
    if self._config.workers:  # out of shared memory, which Grain frees behind the arrays' back
      batch = {name: np.array(array) for name, array in batch.items()}
    return batch

  def _name_the_dead(self, error: RuntimeError) -> Exception:
    """What to raise for Grain's error of a worker process that died."""
    if self._in_work is None or "terminated unexpectedly" not in str(error):
      return error
    samples = [f"shard {shard}, key {key!r}" for shard, key in self._in_work.of_the_dead()]
    at = "; it was decoding " + ", ".join(samples) if samples else ""
    return DataError(
      f"a worker process died ({str(error).split('. ')[0]}): out of memory, or a sample that "
      f"crashes the decoder{at}"
    )

  def _start(self) -> grain.DatasetIterator:
    rest = self._batches.slice(slice(self._position, None)) if self._position else self._batches
    options = grain.ReadOptions(
      num_threads=self._config.threads, prefetch_buffer_size=self._config.prefetch
    )
    iterable = rest.to_iter_dataset(options)
    if self._config.workers:
      if not flags.FLAGS.is_parsed():  # Grain reads its flags, which only absl programs parse
        flags.FLAGS.mark_as_parsed()
      iterable = iterable.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self._config.workers, per_worker_buffer_size=max(1, self._config.prefetch)
        ),
        worker_init_fn=start_worker,
      )
    return iterable.__iter__()

  def get_state(self) -> dict[str, Any]:
    """JSON: "position" (batches taken), and what they depend on."""
    return {"position": self._position, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on after `state["position"]` batches, exactly.

    Raises:
      CheckpointError: the state is of another pipeline; every difference is listed.
    """
    changed = state_differences(state, self.get_state())
    if changed:
      raise CheckpointError("the data position is of another input pipeline: " + "; ".join(changed))
    self.close()
    self._closed = False
    self._position = int(state["position"])

  def close(self) -> None:
    """Stops threads and worker processes."""
    super().close()
    if self._inner is not None:
      self._inner.close()
      self._inner = None
