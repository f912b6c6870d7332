"""Data of captions and clips as the stage reads them: encoded, batch by batch."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vidgen.errors import ConfigError
from vidgen.inputs.config import InputConfig
from vidgen.inputs.encoders import TextEncoder, open_encoder
from vidgen.systems import make_stage
from vidgen.train.autoencoder import LoadedAutoencoder, describe_autoencoder, open_autoencoder
from vidgen.train.data import DataAround, ShardData
from vidgen.train.experiment import Experiment
from vidgen.train.programs import Decode, HostBatch
from vidgen.train.rows import on_host, process_rows
from vidgen.train.upsampled import UpsampledData


def open_data(
  experiment: Experiment, directory: str, *, workdir: str | Path, mesh: Mesh
) -> "ShardData | EncodedData | UpsampledData":
  """The data of a run on `mesh`: with the encoders of its config, unless caches are read.

  Raises:
    ConfigError: an encoder is not there, or makes another stream than the stage reads.
    CheckpointError: one is damaged, or the autoencoder is.
    DataError: there are no such data, or a cache is not theirs or not the encoders'.
  """
  inputs, config = experiment.inputs, experiment.train
  rows = process_rows(config.batch_size, mesh=mesh, rules=experiment.rules)
  data = ShardData(
    inputs, directory, batch_size=config.batch_size, seed=config.seed, workdir=workdir, rows=rows,
    autoencoder=_cached(inputs),
  )  # fmt: skip
  check_streams(experiment, data.describe().get("encoders", {}))
  encoders = {
    name: open_encoder(name, source, mesh=mesh, rules=experiment.rules)
    for name, source in inputs.encoders.items()
    if not inputs.embeddings
  }
  autoencoder, source = None, inputs.autoencoder
  shown = source is not None and source.workdir and config.sheet_every
  if source is not None and (shown or not inputs.latents):
    autoencoder = open_autoencoder(source, mesh=mesh, rules=experiment.rules)
  small = inputs.degradation is not None  # pixels are wanted once more, beside their small copies
  found: ShardData | EncodedData = data
  if encoders or (autoencoder is not None and not small):
    clips = None if small else autoencoder
    found = EncodedData(
      data, encoders, autoencoder=clips, cached=bool(inputs.latents), batch_size=config.batch_size
    )
  if inputs.degradation is None:
    return found
  return UpsampledData(
    found, autoencoder, batch_size=config.batch_size, reconstruct=inputs.degradation.artifacts > 0,
    mesh=mesh, rules=experiment.rules,
  )  # fmt: skip


def _cached(inputs: InputConfig) -> Mapping[str, Any] | None:
  """The identity of the autoencoder whose latents are to be cached; None where nobody says it."""
  if not inputs.latents or inputs.autoencoder is None or not inputs.autoencoder.workdir:
    return None
  return describe_autoencoder(inputs.autoencoder).identity


def check_streams(experiment: Experiment, identities: Mapping[str, Mapping[str, Any]]) -> None:
  """Compares text streams, by what makes them, with what the stage reads.

  Raises:
    ConfigError: the stage has no such stream, or reads it in another length or width.
  """
  if not identities:
    return
  stage = make_stage(experiment.stage.name, experiment.stage.fields)
  spec = stage.batch_spec(experiment.train.batch_size, stage.buckets[0])
  for name, identity in identities.items():
    if name not in spec:
      raise ConfigError(
        f"config.inputs.encoders.{name}: the stage reads no such stream; it reads "
        f"{', '.join(sorted(spec))}"
      )
    made, read = (identity["length"], identity["width"]), spec[name].shape[-2:]
    if read != made:
      raise ConfigError(
        f"config.inputs.encoders.{name}: makes {made[0]} tokens of width {made[1]}, where the "
        f"stage reads {' x '.join(map(str, read))}"
      )


class EncodedData(DataAround):
  """`ShardData` with frozen encoders behind it; what the loop's `Data` asks for.

  A stream NAME of a batch, ids of this process's rows, becomes the whole batch's embeddings on the
  devices, and with an autoencoder "video" becomes "latents" there, unless those are `cached`: all
  processes take their batches together. Held-out batches and examples go back to the host, where
  the loop keeps them.
  """

  def __init__(
    self,
    data: ShardData,
    encoders: Mapping[str, TextEncoder],
    *,
    batch_size: int,
    autoencoder: LoadedAutoencoder | None = None,
    cached: bool = False,
  ):
    super().__init__(data)
    self._encoders, self._batch_size = dict(encoders), batch_size
    self._autoencoder = None if cached else autoencoder
    self._decoder = autoencoder

  def __next__(self) -> HostBatch:
    """The next batch: its streams of all processes, on the devices; the rest of this one."""
    return self._encoded(next(self._data))

  def _encoded(self, batch: HostBatch) -> HostBatch:
    streams = {
      name: _of_texts(
        functools.partial(encoder.of_rows, batch_size=self._batch_size * _slots(batch[name])),
        np.asarray(batch[name]),
        np.asarray(batch[f"{name}_mask"]),
      )
      for name, encoder in self._encoders.items()
    }
    if self._autoencoder is None:
      return {**batch, **streams}
    latents = self._autoencoder.of_rows(np.asarray(batch["video"]), batch_size=self._batch_size)
    rest = {name: array for name, array in batch.items() if name != "video"}
    return {**rest, **streams, "latents": latents}

  @property
  def names(self) -> frozenset[str]:
    """Names of the arrays in a batch."""
    names = self._data.names
    return names if self._autoencoder is None else (names - {"video"}) | {"latents"}

  def describe(self) -> dict[str, Any]:
    """As `ShardData`, and what makes the latents."""
    about = self._data.describe()
    if self._autoencoder is None:
      return about
    return {**about, "autoencoder": self._autoencoder.identity}

  @property
  def decode(self) -> Decode | None:
    """The autoencoder's, if there is one."""
    return None if self._decoder is None else self._decoder.decode_frames

  def held_out(self, batches: int) -> list[HostBatch]:
    """As `ShardData`, encoded."""
    return [on_host(self._encoded(batch)) for batch in self._data.held_out(batches)]

  def examples(self, count: int) -> HostBatch | None:
    """As `ShardData`, encoded."""
    batch = self._data.examples(count)
    if batch is None:
      return None
    streams = {
      name: np.asarray(
        _of_texts(encoder, np.asarray(batch[name]), np.asarray(batch[f"{name}_mask"]))
      )
      for name, encoder in self._encoders.items()
    }
    if self._autoencoder is None:
      return {**batch, **streams}
    latents = self._autoencoder.encode(np.asarray(batch["video"]))
    rest = {name: array for name, array in batch.items() if name != "video"}
    return {**rest, **streams, "latents": np.asarray(latents)}


def _slots(ids: np.ndarray | jax.Array) -> int:
  """The captions of a row of ids, [b, l] or packed [b, k, l]."""
  return math.prod(ids.shape[1:-1])


def _of_texts(
  encode: Callable[[np.ndarray, np.ndarray], jax.Array], ids: np.ndarray, mask: np.ndarray
) -> jax.Array:
  """What `encode` makes of ids [b, l], or of packed [b, k, l] one caption at a time."""
  *_, length = ids.shape
  tokens = encode(ids.reshape(-1, length), mask.reshape(-1, length))
  return tokens.reshape(-1, *ids.shape[1:], tokens.shape[-1])
