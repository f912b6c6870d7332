"""The compiled programs of an experiment on a mesh, and how arrays lie in them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidgen.dist.rules import batch_shardings, state_shardings
from vidgen.errors import ConfigError, DataError
from vidgen.systems.sampling import input_spec, inputs_of, sample
from vidgen.systems.stage import ArraySpec, BatchSpec, Metrics, Params, Stage
from vidgen.train.experiment import Experiment
from vidgen.train.metrics import means
from vidgen.train.optimizer import make_optimizers
from vidgen.train.rows import process_rows
from vidgen.train.state import TrainState, init_state
from vidgen.train.step import eval_step, train_step

HostBatch = Mapping[str, np.ndarray | jax.Array]
Decode = Callable[[jax.Array, int], jax.Array]  # latents to so many frames in pixels


class Programs:
  """Programs by bucket, compiled ahead of time; to be used under `dist.mesh.on_mesh`.

  abstract: the training state as ShapeDtypeStructs with shardings; shardings: those alone.
  specs: for every bucket in use, the global batch; devices split it as `config.rules` say. Buckets
  of one shape go by the name of the first, and share its programs.

  Raises:
    ConfigError: the data have no bucket of the stage, or a batch does not divide over the devices.
  """

  def __init__(self, experiment: Experiment, *, stage: Stage, mesh: Mesh):
    self.experiment, self.stage, self.mesh = experiment, stage, mesh
    config, rules = experiment.train, experiment.rules
    if (check := getattr(stage, "check_train", None)) is not None:
      check(config)
    axes = stage.logical_axes()
    params = jax.eval_shape(stage.init, jax.random.key(0))
    self.tx = make_optimizers(config, params=params, axes=axes, still=stage.frozen)
    self._init = functools.partial(
      init_state,
      config.seed,
      stage=stage,
      tx=self.tx,
      ema_dtype=config.ema_dtype,
    )
    abstract = jax.eval_shape(self._init)
    self._on_device = state_shardings(abstract, axes, params=params, mesh=mesh, rules=rules)
    self.shardings = _offloaded(self._on_device, config.offload)
    self.abstract = jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      abstract,
      self.shardings,
    )
    wanted = {bucket.name for bucket in experiment.inputs.buckets}
    names = [name for name in stage.buckets if name in wanted]
    if not names:
      raise ConfigError(f"config.inputs.buckets: none is one of the stage's {stage.buckets}")
    self.specs: dict[str, BatchSpec] = {}
    for name in names:
      spec = stage.batch_spec(config.batch_size, name)
      if spec not in self.specs.values():
        self.specs[name] = spec
    self._layouts = {
      name: batch_shardings(spec, mesh=mesh, rules=rules) for name, spec in self.specs.items()
    }
    for name in names:  # a micro-batch must divide over the devices, too
      part = stage.batch_spec(config.batch_size // config.accumulate, name)
      batch_shardings(part, mesh=mesh, rules=rules)
    self.replicated = NamedSharding(mesh, PartitionSpec())
    self._eval: dict[str, Any] = {}
    self._sample: Any = None
    self._everywhere = jax.jit(lambda x: x, out_shardings=self.replicated)

  def init(self) -> TrainState:
    """A fresh state, born sharded."""
    return jax.jit(self._init, out_shardings=self.shardings)()

  def train(self, bucket: str) -> jax.stages.Compiled:
    """The train step for one bucket: (state, batch) -> (state, metrics); the state is donated.

    Raises:
      ConfigError: the compiler finds that the step does not fit into the devices' memory.
    """
    return compiled(self.trace_train(bucket), name=f"the step for bucket {bucket!r}")

  def trace_train(self, bucket: str) -> jax.stages.Traced:
    """The train step before it is compiled, for `self.abstract` and a batch of the bucket."""

    def step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
      state = self._fetch(state, self._on_device)
      return train_step(state, batch, stage=self.stage, tx=self.tx, config=self.experiment.train)

    jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, self.replicated))
    return jitted.trace(self.abstract, self._abstract_batch(bucket))

  def trace_sample(self, batch_size: int) -> jax.stages.Traced:
    """The program that makes latents for `batch_size` samples, spread as a batch is.

    Raises:
      ConfigError: the batch does not divide over the devices, or the stage generates nothing.
    """
    if not self.stage.generated:
      raise ConfigError("this stage reconstructs what it is given: there is nothing to sample")
    spec = input_spec(self.stage, batch_size)
    spec["index"] = ArraySpec((batch_size,), np.uint32, ("batch",))
    layout = batch_shardings(spec, mesh=self.mesh, rules=self.experiment.rules)
    inputs = {name: array.struct(layout[name]) for name, array in spec.items()}
    seed = jax.ShapeDtypeStruct((), np.uint32, sharding=self.replicated)
    program = functools.partial(sample, stage=self.stage, settings=self.experiment.sample)
    jitted = jax.jit(lambda ema, *rest: program(self._average(ema), *rest)["latents"])
    return jitted.trace(self.abstract.ema, inputs, seed, inputs.pop("index"))

  def _fetch(self, tree: Any, shardings: Any) -> Any:
    """`tree` on the devices, wherever it lies between the steps."""
    return jax.device_put(tree, shardings) if self.experiment.train.offload else tree

  def _average(self, ema: Params) -> Params:
    """The average as parameters to compute with: on the devices, in float32."""
    ema = self._fetch(ema, self._on_device.ema)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), ema)

  def _abstract_batch(self, bucket: str) -> dict[str, jax.ShapeDtypeStruct]:
    layout = self._layouts[bucket]
    return {name: spec.struct(layout[name]) for name, spec in self.specs[bucket].items()}

  @functools.cached_property
  def _rows(self) -> int:
    """How many rows of a batch this process makes."""
    config = self.experiment
    return len(process_rows(config.train.batch_size, mesh=self.mesh, rules=config.rules))

  def put(self, batch: HostBatch) -> tuple[str, dict[str, jax.Array]]:
    """The bucket of this process's rows of a batch (`process_rows`), and its arrays on the devices.

    What is a jax array already is the whole batch's, and lies as it must.

    Raises:
      DataError: no bucket in use has these names and shapes.
    """
    for bucket, spec in self.specs.items():
      if all(
        name in batch and batch[name].shape == self._shape(batch[name], array)
        for name, array in spec.items()
      ):
        layout = self._layouts[bucket]
        with jax.transfer_guard("allow"):  # the one transfer into the loop that is meant
          return bucket, {
            name: value
            if isinstance(value := batch[name], jax.Array)
            else jax.make_array_from_process_local_data(layout[name], value, array.shape)
            for name, array in spec.items()
          }
    found = {name: array.shape for name, array in batch.items()}
    raise DataError(
      f"a batch of shapes {found} fits no bucket of the stage "
      f"({', '.join(_shapes(name, spec) for name, spec in self.specs.items())}); "
      "make config.inputs and config.stage.fields agree"
    )

  def _shape(self, value: np.ndarray | jax.Array, spec: ArraySpec) -> tuple[int, ...]:
    """The shape that `value` must have: the whole batch's, or that of this process's rows."""
    return spec.shape if isinstance(value, jax.Array) else (self._rows, *spec.shape[1:])

  def evaluate(self, params: Params, batches: list[HostBatch]) -> Metrics:
    """Means over held-out batches, as scalars on the device: loss, and what the stage reports.

    Where the batches are of several buckets, also NAME/BUCKET, the means of each.
    """
    parts: list[tuple[str, Any]] = []
    for index, batch in enumerate(batches):
      bucket, arrays = self.put(batch)
      number = jax.device_put(np.int32(index), self.replicated)
      parts.append((bucket, self.compile_eval(bucket)(params, arrays, number)))
    metrics = _reduce([part for _, part in parts])
    buckets = dict(parts)
    for bucket in buckets if len(buckets) > 1 else ():
      its = _reduce([part for name, part in parts if name == bucket])
      metrics |= {f"{name}/{bucket}": value for name, value in its.items()}
    return metrics

  def compile_eval(self, bucket: str) -> Any:
    """The held-out step for one bucket; compiled once."""
    if bucket not in self._eval:

      def step(params: Params, batch: Mapping[str, jax.Array], index: jax.Array) -> Any:
        config = self.experiment.train
        metrics = eval_step(self._average(params), batch, index, stage=self.stage, config=config)
        return means(tuple(sorted(metrics))).single_from_model_output(**metrics)

      index = jax.ShapeDtypeStruct((), np.int32, sharding=self.replicated)
      jitted = jax.jit(step, out_shardings=self.replicated)
      arguments = (self.abstract.ema, self._abstract_batch(bucket), index)
      self._eval[bucket] = jitted.lower(*arguments).compile()
    return self._eval[bucket]

  @property
  def makes_latents(self) -> bool:
    """Whether what the stage samples is another's to decode."""
    return any("latents" in spec for spec in self.specs.values())

  def sample(
    self, params: Params, examples: HostBatch, *, decode: Decode | None = None
  ) -> jax.Array:
    """Videos [n, t, h, w, c] for the conditions of `examples`, on every device.

    `decode` makes them of the latents, where that is all that the stage samples.
    """
    whole = hasattr(self.stage, "inputs_of")  # they are made of the whole example, in the program
    names = self.specs[next(iter(self.specs))] if whole else input_spec(self.stage, 1)
    batch = {name: examples[name] for name in names}
    count = len(next(iter(batch.values())))
    arguments = jax.device_put(
      (batch, np.uint32(self.experiment.train.seed), np.arange(count, dtype=np.uint32)),
      self.replicated,
    )
    if self._sample is None:
      program = functools.partial(sample, stage=self.stage, settings=self.experiment.sample)
      name = "latents" if self.makes_latents else "video"
      jitted = jax.jit(
        lambda ema, batch, *rest: program(self._average(ema), inputs_of(self.stage, batch), *rest)[
          name
        ],
        out_shardings=self.replicated,
      )
      self._sample = jitted.lower(params, *arguments).compile()
    made = self._sample(params, *arguments)
    if decode is None:
      return made
    with jax.transfer_guard("allow"):
      return self._everywhere(decode(made, self._frames))

  @property
  def _frames(self) -> int:
    """The frames of a sample."""
    buckets = {bucket.name: bucket for bucket in self.experiment.inputs.buckets}
    return self.experiment.sample.frames or buckets[next(iter(self.specs))].frames


def _offloaded(shardings: TrainState, offload: tuple[str, ...]) -> TrainState:
  fields = {"optimizer": "opt_state", "ema": "ema"}
  host = {
    fields[name]: jax.tree.map(
      lambda s: s.with_memory_kind("pinned_host"), getattr(shardings, fields[name])
    )
    for name in offload
  }
  return dataclasses.replace(shardings, **host)


def compiled(traced: jax.stages.Traced, *, name: str) -> jax.stages.Compiled:
  """Compiles what was traced.

  Raises:
    ConfigError: the compiler finds that it does not fit into the devices' memory.
  """
  lowered = traced.lower()
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise ConfigError(
      f"{name} does not fit into memory: {str(error).splitlines()[0]}; "
      "raise train.accumulate, lower train.batch_size, split more by config.mesh, or remat more"
    ) from error


@jax.jit
def _reduce(parts: list[Any]) -> Metrics:
  return functools.reduce(lambda one, other: one.merge(other), parts).compute()


def _shapes(name: str, spec: BatchSpec) -> str:
  return f"{name}: { ({k: v.shape for k, v in spec.items()}) }"
