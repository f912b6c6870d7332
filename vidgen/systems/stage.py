"""The seam: a stage is one trainable network with everything that is particular to it.

The loop, the sampler, the exporter, the planner and the tests know stages only through `Stage`.
A system (a folder beside this file) is a set of stages; adding one changes nothing in the loop.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

Params = Any  # a pytree of float arrays
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """One input array: its shape, dtype, and the logical name of each axis (None: not sharded)."""

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str | None, ...]

  def __post_init__(self):
    if len(self.shape) != len(self.axes):
      raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")

  def struct(self, sharding: jax.sharding.Sharding | None = None) -> jax.ShapeDtypeStruct:
    """The abstract value of this array."""
    return jax.ShapeDtypeStruct(self.shape, jnp.dtype(self.dtype), sharding=sharding)

  def zeros(self) -> np.ndarray:
    """A host array of this shape and dtype, for compiling and for tests."""
    return np.zeros(self.shape, jnp.dtype(self.dtype))


BatchSpec = Mapping[str, ArraySpec]


@dataclasses.dataclass(frozen=True)
class SampleSettings:
  """How to sample: `steps` network evaluations (twice that with guidance), guidance scale (1: off).

  `schedule` and `linear_steps` are read by flow-matching stages: "linear_quadratic" follows the
  first half of a uniform grid of `linear_steps` steps, then spaces the rest quadratically
  (Movie Gen, section 3.4.2: 50 steps, 250 or 1000 linear ones). `frames`, `height` and `width` are
  the shape of a sample in pixels; None: that of the stage's first bucket.
  """

  steps: int = 50
  guidance_scale: float = 7.5
  schedule: str = "linear_quadratic"
  linear_steps: int = 250
  frames: int | None = None
  height: int | None = None
  width: int | None = None

  def __post_init__(self):
    for name in ("frames", "height", "width"):
      if (size := getattr(self, name)) is not None and size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    if self.steps < 1:
      raise ValueError(f"steps must be at least 1, got {self.steps}")
    if not 0 <= self.guidance_scale < float("inf"):  # also when it is not a number
      raise ValueError(f"guidance_scale must be 0 or more, got {self.guidance_scale}")
    if self.schedule not in ("linear", "linear_quadratic"):
      raise ValueError(f"schedule {self.schedule!r} is neither 'linear' nor 'linear_quadratic'")
    if self.schedule == "linear_quadratic" and self.linear_steps < self.steps:
      raise ValueError(f"linear_steps {self.linear_steps} is less than steps {self.steps}")


@runtime_checkable  # so that the tests' type checks can tell a stage
class Stage(Protocol):
  """A trainable network as pure functions over pytrees. All arrays have a leading batch axis b.

  A stage may have more methods: `step_flops(batch_spec)` and `advance(params, step)` (see the
  functions), `check_train(config)`, which raises ConfigError where a `TrainConfig` does not go with
  it, `evaluations(settings)` (`sampling.sampling_flops`), and, where sampling eats what is
  not in a batch, such as another stage's clips, `input_spec(batch_size)`, which describes that as
  `batch_spec` does a batch (`sampling.input_spec`), and `inputs_of(batch)`, which makes it of a
  batch of the first bucket (`sampling.inputs_of`).
  """

  @property
  def buckets(self) -> tuple[str, ...]:
    """Names of the batch shapes this stage trains on, such as ("video", "image")."""
    ...

  @property
  def generated(self) -> tuple[str, ...]:
    """Names of a batch that sampling makes; a stage that reconstructs what it is given has none."""
    ...

  @property
  def required(self) -> tuple[str, ...]:
    """Parts of the parameters that do not train: a run begins with a file's or another run's."""
    ...

  @property
  def frozen(self) -> tuple[str, ...]:
    """Regexes of parameters that no optimizer moves, whatever a config says."""
    ...

  def init(self, rng: jax.Array) -> Params:
    """Fresh float32 parameters from one typed key."""
    ...

  def loss(self, params: Params, batch: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
    """The mean loss over the batch, and scalar metrics.

    `rng` holds one typed key per example, [b]: what is drawn for an example depends on its key
    alone, so micro-batches, devices and hosts change nothing.
    """
    ...

  def sample(
    self, params: Params, inputs: Batch, rng: jax.Array, settings: SampleSettings
  ) -> dict[str, jax.Array]:
    """Samples for `inputs` (`sampling.input_spec`); `rng` [b] as in `loss`.

    Returns "latents" (what the network generates) and "video" [b, t, h, w, c] in [-1, 1].
    """
    ...

  def decode(self, params: Params, latents: jax.Array) -> jax.Array:
    """Latents to video [b, t, h, w, c] in [-1, 1]; the last part of `sample`."""
    ...

  def text_cut(self, batch: Batch) -> jax.Array:
    """Which texts are longer than this stage reads, beyond what tokenising already cut; bool [b].

    `batch` may be what `loss` or what `sample` eats.
    """
    ...

  def batch_spec(self, batch_size: int, bucket: str = "video") -> BatchSpec:
    """Names, shapes, dtypes and logical axes of what `loss` eats."""
    ...

  def flops(self, batch_spec: BatchSpec) -> float:
    """Model FLOPs of one forward pass over such a batch (2 per multiply-add)."""
    ...

  def logical_axes(self) -> Any:
    """A pytree like the parameters, each leaf a tuple of logical axis names or None."""
    ...


def step_flops(stage: Stage, batch_spec: BatchSpec) -> float:
  """Model FLOPs of a train step on such a batch, nothing counted twice.

  Those of three forward passes, unless the stage has a `step_flops` of its own: one that also runs
  networks that do not train.
  """
  own = getattr(stage, "step_flops", None)
  return 3 * stage.flops(batch_spec) if own is None else own(batch_spec)


def advanced(stage: Stage, params: Params, step: jax.Array) -> Params:
  """The parameters with which train step number `step` begins: as they are, for most stages.

  A stage with an `advance` of its own changes those that no optimizer moves, by the step's number:
  which round of training it is, whose student teaches the next.
  """
  own = getattr(stage, "advance", None)
  return params if own is None else own(params, step)
