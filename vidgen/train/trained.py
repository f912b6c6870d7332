"""A trained model from a checkpoint of a run: what sampling and export start from."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vidgen import config as cfg
from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh, resolve_mesh, slice_count
from vidgen.dist.rules import batch_shardings, state_shardings
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.config import AutoencoderSource
from vidgen.inputs.encoders import TextEncoder, open_encoder
from vidgen.nn.partition import Rules
from vidgen.systems import ArraySpec, SampleSettings, Stage, make_stage
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import Experiment, Weights, from_plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
  """A step of a run, as far as it is known without reading its parameters."""

  experiment: Experiment
  stage: Stage
  step: int
  weights: Weights
  config_digest: str
  stage_digest: str  # of the stage as it was stored, whatever fields stages have got since
  params_digest: str
  # Of each text stream, what the embeddings hung on that it was trained on; of latents likewise.
  encoders: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  autoencoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def autoencoder_source(self, run: str = "") -> AutoencoderSource:
    """The autoencoder whose latents the run was trained on: `run`, or what its config says.

    Raises:
      ConfigError: neither names a run.
    """
    source = self.experiment.inputs.autoencoder or AutoencoderSource()
    if run:
      workdir, step = run_and_step(run)
      source = dataclasses.replace(source, workdir=workdir, step=step)
    if not source.workdir:
      raise ConfigError(
        "this stage makes latents: say whose they are with --autoencoder, or stop at them with "
        "--latents-only"
      )
    return source

  def check_autoencoder(self, source: AutoencoderSource, identity: Mapping[str, Any]) -> None:
    """Raises CheckpointError where an autoencoder is not the one that the run was trained with."""
    if lines := cfg.differences(self.autoencoder, identity) if self.autoencoder else []:
      raise CheckpointError(
        f"autoencoder {source.workdir} is not the one that the run was trained with: "
        + "; ".join(lines)
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Described):
  """A stage with parameters, on a mesh, and where they come from."""

  params: Any
  mesh: Mesh

  def text_encoders(self, folders: Mapping[str, str]) -> dict[str, TextEncoder]:
    """The text encoders that the run was trained with, loaded from where its config says.

    `folders` says for some of them where else they lie.

    Raises:
      ConfigError: no folder is known for one, or `folders` names another.
      CheckpointError: one is damaged, or not the one that the run was trained with.
    """
    sources = dict(self.experiment.inputs.encoders)
    if unknown := sorted(set(folders) - set(sources)):
      raise ConfigError(f"text encoder {unknown[0]!r}: the run has {sorted(sources) or 'none'}")
    loaded = {}
    for name, source in sources.items():
      if name in folders:
        source = dataclasses.replace(source, folder=folders[name], tokenizer="")
      loaded[name] = open_encoder(name, source, mesh=self.mesh, rules=self.experiment.rules)
      lines = cfg.differences(self.encoders.get(name), loaded[name].identity)
      if lines:
        raise CheckpointError(
          f"text encoder {name!r} at {source.folder} is not the one that the run was trained with: "
          + "; ".join(lines)
        )
    return loaded

  def load_autoencoder(self, run: str = "") -> Any:
    """The autoencoder whose latents the run was trained on, from `run` or where its config says.

    Raises:
      ConfigError: neither names a run.
      CheckpointError: it is damaged, or not the one that the run was trained with.
    """
    from vidgen.train.autoencoder import open_autoencoder

    source = self.autoencoder_source(run)
    loaded = open_autoencoder(source, mesh=self.mesh, rules=self.experiment.rules)
    self.check_autoencoder(source, loaded.identity)
    return loaded

  @property
  def fps(self) -> float:
    """Frames per second of what is sampled: those of the stage's first bucket."""
    rates = {bucket.name: bucket.fps for bucket in self.experiment.inputs.buckets}
    name = self.stage.buckets[0]
    if not rates.get(name):
      raise ConfigError(f"config.inputs.buckets: no frame rate for the stage's bucket {name!r}")
    return float(rates[name])

  def settings(self, **given: Any) -> SampleSettings:
    """The experiment's sampler settings, with what is given and not None in their place.

    Raises:
      ConfigError: a value is out of range.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    try:
      return dataclasses.replace(self.experiment.sample, **changes)
    except ValueError as error:
      raise ConfigError(str(error)) from error

  def shape(self, settings: SampleSettings) -> tuple[int, int, int]:
    """Frames, height and width, in pixels, of a sample with `settings`."""
    buckets = {bucket.name: bucket for bucket in self.experiment.inputs.buckets}
    first = buckets.get(self.stage.buckets[0])
    sizes = []
    for name in ("frames", "height", "width"):
      size = getattr(settings, name)
      if size is None and first is None:
        raise ConfigError(
          f"config.inputs.buckets: none is the stage's {self.stage.buckets[0]!r}: say --{name}"
        )
      sizes.append(getattr(first, name) if size is None else size)
    return sizes[0], sizes[1], sizes[2]

  @contextlib.contextmanager
  def mesh_context(self) -> Iterator[None]:
    """Where programs that use these parameters are to be traced and run."""
    with on_mesh(self.mesh, rules=self.experiment.rules, attention=self.experiment.attention):
      yield

  def batch_sharding(self, batch_size: int) -> tuple[int, NamedSharding]:
    """The least batch, of `batch_size` or more, that spreads over the mesh, and how it does."""
    parts = math.prod(self.mesh.shape[axis] for axis in ("data", "fsdp"))
    whole = -(-batch_size // parts) * parts
    spec = {"index": ArraySpec((whole,), np.uint32, ("batch",))}
    return whole, batch_shardings(spec, mesh=self.mesh, rules=self.experiment.rules)["index"]


def run_and_step(text: str) -> tuple[str, int | None]:
  """A run's directory, and the step behind an "@", as in "runs/base@5000"."""
  workdir, at, step = text.rpartition("@")
  if not at or not step.isdecimal() or Path(text).is_dir():
    return text, None
  return workdir, int(step)


def load_trained(
  workdir: str | Path,
  *,
  step: int | None = None,
  weights: Weights = "ema",
  mesh: Mesh | None = None,
  rules: Rules | None = None,
) -> Trained:
  """Restores the parameters of a run, verified, onto `mesh` as `rules` say, or onto all devices.

  By default the mesh is the run's where it fits the devices there are, otherwise all of them on
  "fsdp", and the rules are the run's.

  Raises:
    CheckpointError: no such run or step, a damaged checkpoint, or one that is not of this model.
  """
  with _opened(workdir) as checkpoints:
    found = _describe(checkpoints, step=step, weights=weights)
    experiment, stage = found.experiment, found.stage
    if rules is not None:
      experiment = dataclasses.replace(experiment, rules=tuple(rules))
    mesh = _mesh(experiment.mesh) if mesh is None else mesh
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    shardings = state_shardings(
      shapes, stage.logical_axes(), params=shapes, mesh=mesh, rules=experiment.rules
    )
    dtypes = {"ema": experiment.train.ema_dtype, "params": "float32"}
    dtype = jax.numpy.dtype(dtypes[weights])
    like = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, shardings
    )
    params = checkpoints.restore_params(weights, step=found.step, like=like)
    params = jax.tree.map(lambda x: x.astype("float32"), params)
  fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(Described)}
  return Trained(**{**fields, "experiment": experiment}, params=params, mesh=mesh)


def describe_trained(
  workdir: str | Path, *, step: int | None = None, weights: Weights = "ema"
) -> Described:
  """What `load_trained` says of a run, but for the parameters themselves, which stay unread.

  Raises:
    CheckpointError: no such run or step, or a damaged config or manifest.
  """
  with _opened(workdir) as checkpoints:
    return _describe(checkpoints, step=step, weights=weights)


def _describe(checkpoints: Checkpoints, *, step: int | None, weights: Weights) -> Described:
  step = checkpoints.latest() if step is None else step
  config = checkpoints.read_config(step)
  assert step is not None  # read_config raises where there is no checkpoint
  experiment = from_plain(config)
  about = checkpoints.read_data_state(step).get("description", {})
  return Described(
    experiment=experiment,
    stage=make_stage(experiment.stage.name, experiment.stage.fields),
    step=step,
    weights=weights,
    config_digest=cfg.digest(config),
    stage_digest=cfg.digest(config["stage"]),
    params_digest=checkpoints.digests(step)[weights],
    encoders=about["encoders"] if experiment.inputs.encoders else {},
    autoencoder=about.get("autoencoder", {}),
  )


@contextlib.contextmanager
def _opened(workdir: str | Path) -> Iterator[Checkpoints]:
  directory = Path(workdir) / "checkpoints"
  if not directory.is_dir():
    raise CheckpointError(f"{workdir}: holds no checkpoints; train there first, or check --workdir")
  checkpoints = Checkpoints(directory)
  try:
    yield checkpoints
  except ConfigError as error:
    raise CheckpointError(f"{directory}: the stored config does not build: {error}") from error
  finally:
    checkpoints.close()


def _mesh(config: MeshConfig) -> Mesh:
  try:
    resolve_mesh(config, jax.device_count(), slices=slice_count(jax.devices()))
  except ConfigError:
    config = MeshConfig(data=1, fsdp=-1, context=1, tensor=1)
  return make_mesh(config)
