"""A student that needs few steps and one evaluation a step, as a way to train any of the stages.

Imagen Video (section 2.7) distils all seven models to 8 steps each, as Meng et al. (2023) do: first
a student learns what its teacher makes with and without text, the guidance scale an input; then, in
rounds, a student learns to do in one step what its teacher, the student before, does in two.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidgen.diffusion import gaussian
from vidgen.diffusion.gaussian import LogSNR, Schedule
from vidgen.diffusion.gaussian_distillation import progressive_target, stochastic_target
from vidgen.errors import ConfigError

# (z, level, guidance scale [b]) to v
Velocity = Callable[[Float[Array, "b ..."], LogSNR, Float[Array, " b"]], Float[Array, "b ..."]]


@dataclasses.dataclass(frozen=True)
class Teacher:
  """What a student learns from: `guided` in the first round, `student` in the others."""

  guided: Velocity
  student: Velocity


@dataclasses.dataclass(frozen=True)
class Task:
  """What a student is asked, and what it is to answer; the scale is of an example."""

  time: Float[Array, "b t"]
  level: LogSNR
  z: Float[Array, "b ..."]
  velocity: Float[Array, "b ..."]
  scale: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Distillation:
  """Rounds of training. What of this is not given by the paper: all but the 8 steps at the end.

  guidance_steps: train steps of the first round, in which guidance becomes an input; round_steps:
  of each that halves the sampler's steps, from `start` of the first teacher to `end`. A run must
  agree (`check_run`); the learning rate begins anew with each round, the optimizer's moments stay.
  scales: the guidance scales that are drawn, evenly; sampling takes those only. sampler: what the
  student is for, DDIM steps or those of `Method("stochastic")`. loss: see
  `gaussian.velocity_weight`.
  """

  guidance_steps: int = 50_000
  round_steps: int = 50_000
  start: int = 128
  end: int = 8
  scales: tuple[float, float] = (1.0, 8.0)
  sampler: Literal["ddim", "stochastic"] = "ddim"
  loss: Literal["v", "truncated_snr"] = "truncated_snr"

  def __post_init__(self):
    if self.end < 1 or self.start != self.end << self.rounds:
      raise ValueError(f"start {self.start} is not end {self.end} doubled so many times")
    if min(self.guidance_steps, self.round_steps) < 1:
      raise ValueError("guidance_steps and round_steps must be at least 1")
    if not 0 <= self.scales[0] <= self.scales[1]:
      raise ValueError(f"scales {self.scales} must be a range of 0 or more")

  @property
  def rounds(self) -> int:
    """How often the steps are halved."""
    return max(0, round(math.log2(self.start / self.end))) if self.start >= self.end else 0

  @property
  def restarts(self) -> tuple[int, ...]:
    """The train steps with which a round after the first begins."""
    return tuple(self.guidance_steps + i * self.round_steps for i in range(self.rounds))

  @property
  def train_steps(self) -> int:
    """All of them."""
    return self.guidance_steps + self.rounds * self.round_steps

  def advance(self, params: dict, step: Int[Array, ""]) -> dict:
    """The parameters with which train step number `step` begins: each round's student teaches."""
    begins = jnp.array([0, *self.restarts], jnp.int32)
    new = (begins == step).any()
    teacher = jax.tree.map(
      lambda student, teacher: jnp.where(new, student, teacher),
      params["network"],
      params["teacher"],
    )
    number = (step >= begins).sum() - 1
    return {**params, "teacher": teacher, "round": number.astype(jnp.float32)}

  def check_sampling(self, *, steps: int, scales: Iterable[float]) -> None:
    """Raises ConfigError where a student is asked for what it has not learned."""
    if steps != self.end:
      raise ConfigError(f"a student of {self.end} steps cannot be sampled in {steps}")
    low, high = self.scales
    for scale in scales:
      if not low <= scale <= high:
        raise ConfigError(f"guidance_scale {scale} is not of those of the student, {low} to {high}")

  def check_run(self, *, steps: int, restarts: tuple[int, ...], ema_decay: float) -> None:
    """Raises ConfigError where a run is not of these rounds."""
    if steps != self.train_steps or restarts != self.restarts:
      raise ConfigError(
        f"config.train: the rounds of config.stage.fields.distillation are {self.train_steps} "
        f"steps with optimizer.restarts {self.restarts}, not {steps} with {restarts}"
      )
    if ema_decay:
      raise ConfigError("config.train.ema_decay: must be 0, or teachers of two rounds are mixed")

  def student_steps(self, number: Float[Array, ""]) -> Int[Array, ""]:
    """The sampler's steps that a student of that round is for; after the first, `start`."""
    return jnp.right_shift(self.start, number.astype(jnp.int32))

  def task(
    self,
    video: Float[Array, "b t h w c"],
    noise: Float[Array, "b t h w c"],
    time: Float[Array, "b t"],
    scale: Float[Array, " b"],
    number: Float[Array, ""],
    *,
    schedule: Schedule,
    teacher: Teacher,
  ) -> Task:
    """What to ask in round `number`: `time` and `scale` are uniform in [0, 1).

    In the first round any time; in the others those at which one of the student's steps begins.
    """
    low, high = self.scales
    scale = low + (high - low) * scale
    first = number == 0
    steps = self.student_steps(number)
    start = jnp.minimum((time * steps).astype(jnp.int32) + 1, steps)
    time = jnp.where(first, time, start / steps)
    level = schedule.logsnr(time)
    z = gaussian.diffused(video, noise, level)

    def guided() -> Array:
      return teacher.guided(z, level, scale)

    def halved() -> Array:
      def data(z: Array, level: LogSNR) -> Array:
        return gaussian.data_from_velocity(teacher.student(z, level, scale), z, level)

      target = stochastic_target if self.sampler == "stochastic" else progressive_target
      x = target(data, z, start=start, steps=steps, schedule=schedule)
      return gaussian.velocity_from_data(x, z, level)

    velocity = jax.lax.stop_gradient(jax.lax.cond(first, guided, halved))
    return Task(time, level, z, velocity, scale)
