"""A trained autoencoder at work: clips to normalised latents and back.

A stage trained on latents sees each channel with mean 0 and standard deviation 1. The numbers
behind that are measured once (`measure_statistics`), kept beside the autoencoder's run, bound to
its parameters, and are part of its identity.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from vidgen.dist.mesh import on_mesh
from vidgen.dist.rules import batch_shardings
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.choice import NoBatch
from vidgen.inputs.config import AutoencoderSource, InputConfig
from vidgen.inputs.pipeline import make_dataset
from vidgen.nn.partition import Rules
from vidgen.systems import ArraySpec
from vidgen.train.data import STILL
from vidgen.train.trained import Described, Trained, describe_trained, load_trained
from vidgen.whole_file import write_whole

STATISTICS = "latent_statistics.json"
REMEDY = "remove it, and measure again with `vidgen data latents`"


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Mean and standard deviation of each channel of the latents, and over how many clips."""

  mean: tuple[float, ...]
  std: tuple[float, ...]
  clips: int

  def __post_init__(self):
    if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
      raise ValueError("mean and std must be as many, and std positive")


class LoadedAutoencoder:
  """`stage` with `params`; latents in and out are normalised by `statistics`.

  `identity` says by digests what its latents hang on.
  """

  def __init__(
    self, trained: Trained, source: AutoencoderSource, *, statistics: Statistics, mesh: Mesh
  ):
    self.source, self.statistics, self.mesh = source, statistics, mesh
    self.stage: Any = trained.stage
    self.params: Any = trained.params
    self._rules = trained.experiment.rules
    self.identity = _identity(source, trained, statistics)
    mean, std = (np.asarray(v, np.float32) for v in (statistics.mean, statistics.std))

    def encode(params: Any, video: Array) -> Array:
      z = encoded(self.stage, params, video, frames=source.frames)
      z = (z - mean) / std
      # a cast there and back, which XLA might leave out
      if source.dtype == "bfloat16":
        z = jax.lax.reduce_precision(z, exponent_bits=8, mantissa_bits=7)
      return z

    def decode(params: Any, latents: Array) -> Array:
      return self.stage.decode(params, latents * std + mean)

    def decode_images(params: Any, latents: Array) -> Array:
      return self.stage.decode_image(params, latents * std + mean)

    self._mean, self._std = mean, std
    self._encode, self._decode = jax.jit(encode), jax.jit(decode)
    self._decode_images = jax.jit(decode_images)

  @property
  def channels(self) -> int:
    """Of the latents."""
    return self.stage.latent_channels

  def encode(self, video: Float[Any, "b t h w 3"]) -> Float[Array, "b _ _ _ c"]:
    """Normalised latents of clips, or with `frames` "each" of every frame by itself."""
    with on_mesh(self.mesh, rules=self._rules):
      return self._encode(self.params, video)

  def of_rows(self, video: np.ndarray, *, batch_size: int) -> Float[Array, "b _ _ _ c"]:
    """As `encode`, for a batch of which this process has these rows (`train.rows.process_rows`).

    The result is split over the mesh as batches are. All processes call it together.
    """
    spec = {"video": batch_array((batch_size, *video.shape[1:]))}
    layout = batch_shardings(spec, mesh=self.mesh, rules=self._rules)["video"]
    with jax.transfer_guard("allow"):
      whole = jax.make_array_from_process_local_data(layout, video, spec["video"].shape)
      latents = self.encode(whole)
    spec = {"latents": batch_array(latents.shape)}
    return jax.device_put(
      latents, batch_shardings(spec, mesh=self.mesh, rules=self._rules)["latents"]
    )

  def decode(self, latents: Float[Any, "b t h w c"], *, frames: int) -> Float[Array, "b _ _ _ 3"]:
    """The first `frames` frames of normalised latents, in [-1, 1]; whole on the devices.

    Raises:
      ConfigError: so many frames are not in them.
    """
    self._check(latents, frames)
    with on_mesh(self.mesh, rules=self._rules):
      if latents.shape[1] == 1 == frames or self.source.frames == "each":
        return self._decode_images(self.params, latents)[:, :frames]
      return self._decode(self.params, latents)[:, :frames]

  def decode_frames(self, latents: Array, frames: int) -> Array:
    """As `decode`, in the form of `train.programs.Decode`."""
    return self.decode(latents, frames=frames)

  def stream(self, latents: Float[Any, "b t h w c"], *, frames: int) -> Iterator[np.ndarray]:
    """As `decode`, in pieces along t, so that memory does not grow with the clip.

    Raises:
      ConfigError: so many frames are not in them, or the autoencoder cannot stream.
    """
    from vidgen.systems.movie_gen.decoding import stream_decode, streams

    self._check(latents, frames)
    if latents.shape[1] == 1 == frames or self.source.frames == "each":
      for t in range(frames):
        yield np.asarray(self.decode(latents[:, t : t + 1], frames=1))
      return
    if not streams(self.stage):
      raise ConfigError("this autoencoder attends to all frames: it cannot decode in pieces")
    raw = _Raw(latents, mean=self._mean, std=self._std)
    with on_mesh(self.mesh, rules=self._rules):
      for piece in stream_decode(
        self.stage.network, self.params["autoencoder"], raw, frames=frames
      ):
        yield np.clip(piece, -1, 1)

  def most_frames(self, length: int) -> int:
    """How many frames are in so many of latents."""
    return length * (1 if self.source.frames == "each" else self.stage.temporal_stride)

  def _check(self, latents: Any, frames: int) -> None:
    most = self.most_frames(latents.shape[1])
    if not 1 <= frames <= most or latents.shape[-1] != self.channels:
      raise ConfigError(
        f"latents of shape {tuple(latents.shape)} hold at most {most} frames of {self.channels} "
        f"channels, {frames} were asked for"
      )


class _Raw:
  """Latents as the network made them, those of a slice when it is asked for."""

  def __init__(self, latents: Any, *, mean: np.ndarray, std: np.ndarray):
    self.shape, self._latents, self._mean, self._std = latents.shape, latents, mean, std

  def __getitem__(self, index: Any) -> np.ndarray:
    return np.asarray(self._latents[index], np.float32) * self._std + self._mean


def batch_array(shape: Sequence[int]) -> ArraySpec:
  """A float32 batch of that shape, split as batches are."""
  return ArraySpec(tuple(shape), np.float32, ("batch", *(None,) * (len(shape) - 1)))


def encoded(stage: Any, params: Any, video: Array, *, frames: str) -> Array:
  """Raw latents of clips [b t h w 3], whole, or with `frames` "each" of every frame by itself."""
  if frames == "clip":
    return stage.encode(params, video)
  b, t = video.shape[:2]
  z = stage.encode(params, video.reshape(b * t, 1, *video.shape[2:]))
  return z.reshape(b, t, *z.shape[2:])


def open_autoencoder(
  source: AutoencoderSource, *, mesh: Mesh, rules: Rules | None = None
) -> LoadedAutoencoder:
  """The autoencoder of a run, verified, on `mesh`.

  Raises:
    ConfigError: no run is named, it is not of an autoencoder, or its latents were not measured.
    CheckpointError: the run is damaged, or its statistics are of other parameters.
  """
  trained = _open(source, mesh=mesh, rules=rules)
  statistics = read_statistics(source, trained)
  return LoadedAutoencoder(trained, source, statistics=statistics, mesh=mesh)


def _open(source: AutoencoderSource, *, mesh: Mesh, rules: Rules | None) -> Trained:
  _check_named(source)
  trained = load_trained(
    source.workdir, step=source.step, weights=source.weights, mesh=mesh, rules=rules
  )
  _check_encodes(source, trained)
  return trained


def _check_named(source: AutoencoderSource) -> None:
  if not source.workdir:
    raise ConfigError("config.inputs.autoencoder.workdir: names no run of an autoencoder")


def _check_encodes(source: AutoencoderSource, trained: Described) -> None:
  if not hasattr(trained.stage, "encode"):
    raise ConfigError(f"{source.workdir}: {trained.experiment.stage.name} is no autoencoder")


@dataclasses.dataclass(frozen=True)
class DescribedAutoencoder:
  """An autoencoder of which no parameter was read: its stage, and the identity of its latents."""

  source: AutoencoderSource
  stage: Any
  identity: Mapping[str, Any]

  def latent_shape(self, *, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """t, h, w, c of the latents of one clip."""
    video = jax.ShapeDtypeStruct((1, frames, height, width, 3), np.float32)
    params = jax.eval_shape(self.stage.init, jax.random.key(0))
    z = jax.eval_shape(
      lambda p, x: encoded(self.stage, p, x, frames=self.source.frames), params, video
    )
    return z.shape[1:]


def describe_autoencoder(source: AutoencoderSource) -> DescribedAutoencoder:
  """What is known of a run's latents without reading its parameters.

  Raises:
    ConfigError: as `open_autoencoder`.
    CheckpointError: the run or its statistics are damaged.
  """
  _check_named(source)
  found = describe_trained(source.workdir, step=source.step, weights=source.weights)
  _check_encodes(source, found)
  identity = _identity(source, found, read_statistics(source, found))
  return DescribedAutoencoder(source, found.stage, identity)


def _identity(
  source: AutoencoderSource, trained: Described, statistics: Statistics
) -> dict[str, Any]:
  """By digests, what the latents of an autoencoder hang on."""
  return {
    "stage": trained.stage_digest,
    "params": trained.params_digest,
    "dtype": source.dtype,
    "frames": source.frames,
    "mean": list(statistics.mean),
    "std": list(statistics.std),
  }


def read_statistics(source: AutoencoderSource, trained: Described) -> Statistics:
  """What `measure_statistics` found of these parameters and this way of encoding.

  Raises:
    ConfigError: nothing yet.
    CheckpointError: the file is damaged, or of another number of channels.
  """
  path = Path(source.workdir) / STATISTICS
  found = _measured(path).get(_key(source, trained))
  if found is None:
    raise ConfigError(
      f"{path}: holds nothing of step {trained.step} with frames {source.frames!r}: measure its "
      "latents with `vidgen data latents`"
    )
  stage: Any = trained.stage
  try:
    statistics = Statistics(tuple(found["mean"]), tuple(found["std"]), int(found["clips"]))
    if len(statistics.mean) != stage.latent_channels:
      raise ValueError(f"{len(statistics.mean)} channels, not {stage.latent_channels}")
  except (ValueError, KeyError, TypeError) as error:
    raise CheckpointError(f"{path}: damaged: {error}; {REMEDY}") from error
  return statistics


def _key(source: AutoencoderSource, trained: Described) -> str:
  return f"{trained.params_digest}/{source.frames}"


def _measured(path: Path) -> dict[str, Any]:
  """All that was measured of a run, by digest of the parameters and way of encoding."""
  try:
    tree = json.loads(path.read_bytes())
    if not isinstance(tree, dict):
      raise ValueError("not a JSON object")
    return tree
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, RecursionError) as error:
    raise CheckpointError(f"{path}: damaged: {error}; {REMEDY}") from error


def training_clips(
  config: InputConfig, directory: str, *, batch_size: int, count: int
) -> Iterator[np.ndarray]:
  """Batches [b t h w 3] of the first clips of each bucket, each once, cut in the middle.

  As many batches as hold `count` clips, or as there are; buckets without a batch are left out.

  Raises:
    DataError: there are no such data.
  """
  empty: list[NoBatch] = []
  still = dataclasses.replace(config, workers=0, encoders={}, embeddings="", latents="", **STILL)
  for bucket in config.buckets:
    try:
      dataset = make_dataset(
        still, directory, bucket=bucket.name, batch_size=batch_size, seed=0, repeat=False
      )
    except NoBatch as error:
      empty.append(error)
      if len(empty) == len(config.buckets):
        raise
      print(f"warning: bucket {bucket.name} is left out: {error}", file=sys.stderr)
      continue
    iterator: Any = iter(dataset)
    try:
      for batch in itertools.islice(iterator, -(-count // batch_size)):
        yield batch["video"]
    finally:
      iterator.close()


def measure_statistics(
  source: AutoencoderSource,
  videos: Iterable[np.ndarray],
  *,
  mesh: Mesh,
  rules: Rules | None = None,
  replace: bool = False,
) -> Statistics:
  """Measures the latents of `videos`, batches [b t h w 3], and writes it beside the run.

  Sums are float64, of every position of every clip alike. `replace` gives up what was measured
  before, and with it the stages that were trained on latents so normalised.

  Raises:
    ConfigError: there are no videos, a channel never changes, or without `replace` these parameters
      were measured before.
    CheckpointError: the run or what was measured of it is damaged.
  """
  trained = _open(source, mesh=mesh, rules=rules)
  stage: Any = trained.stage
  path, key = Path(source.workdir) / STATISTICS, _key(source, trained)
  if key in _measured(path) and not replace:
    raise ConfigError(
      f"{path}: step {trained.step} was measured before; stages that were trained on its latents "
      "hang on that. To give them up say --replace"
    )
  run = jax.jit(lambda params, x: encoded(stage, params, x, frames=source.frames))
  count, clips = 0, 0
  total = square = np.zeros(stage.latent_channels, np.float64)
  for video in videos:
    with on_mesh(mesh, rules=trained.experiment.rules):
      z = np.asarray(run(trained.params, jnp.asarray(video)), np.float64)
    z = z.reshape(-1, z.shape[-1])
    count, clips = count + len(z), clips + len(video)
    total, square = total + z.sum(0), square + (z * z).sum(0)
  if not count:
    raise ConfigError("there are no clips to measure latents of")
  mean = total / count
  variance = square / count - mean**2
  if not (variance > 0).all():
    raise ConfigError(f"{source.workdir}: channels {np.flatnonzero(variance <= 0)} never change")
  statistics = Statistics(tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()), clips)
  entry = {**dataclasses.asdict(statistics), "step": trained.step, "weights": source.weights}
  tree = {**_measured(path), key: entry}
  write_whole(path, (json.dumps(tree, indent=2) + "\n").encode())
  return statistics
