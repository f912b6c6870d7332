"""Targets of distillation: what a student is to predict in place of the data.

Progressive distillation (Salimans and Ho, 2022) halves the number of steps a round: one step of the
student is to do what two of the teacher do. Guided distillation (Meng et al., 2023) first makes a
student of a teacher's two passes, whose target at the same z and level is `guidance.guided` of the
teacher with a scale for each example; rounds of the former follow, with the scale as an input.

The number of steps and the start are arrays: rounds share one compiled program. Teachers are not
clipped. Loss: `velocity_from_data` of the target, weighted by "v" or "truncated_snr" of
`velocity_weight`; "eps" would teach nothing at the noisy end.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidgen.diffusion.gaussian import LogSNR, Schedule
from vidgen.diffusion.gaussian_samplers import ddim_step

# (z [b ...], levels [b] or more axes of z) to data [b ...]
Teacher = Callable[[Float[Array, "b ..."], LogSNR], Float[Array, "b ..."]]


def start_level(start: Int[Array, "*b"], *, steps: Int[Array, ""], schedule: Schedule) -> LogSNR:
  """The level of z from which a student goes its step number `start` of `steps`, from 1."""
  return schedule.logsnr(start / steps)


def progressive_target(
  teacher: Teacher,
  z: Float[Array, "b ..."],
  *,
  start: Int[Array, "*b"],
  steps: Int[Array, ""],
  schedule: Schedule,
) -> Float[Array, "b ..."]:
  """The data with which one DDIM step from i / N to (i - 1) / N does two steps of the teacher.

  `z` is at `start_level`. The last step, i = 1, ends at the data: its target is what the teacher
  predicts half way.
  """
  end = schedule.logsnr((start - 1) / steps)
  end = LogSNR(jnp.where(start == 1, jnp.inf, end.value))
  middle = schedule.logsnr((start - 0.5) / steps)
  return _two_steps(teacher, z, start_level(start, steps=steps, schedule=schedule), middle, end)


def stochastic_target(
  teacher: Teacher,
  z: Float[Array, "b ..."],
  *,
  start: Int[Array, "*b"],
  steps: Int[Array, ""],
  schedule: Schedule,
) -> Float[Array, "b ..."]:
  """As `progressive_target`, for the student that jumps 2 / N from any i / N: "stochastic".

  The teacher's own jumps are of 1 / N. From i = 1 there is one left, to the data: the target is
  what the teacher predicts there.
  """
  middle = schedule.logsnr((start - 1) / steps)
  end = schedule.logsnr(jnp.maximum(start - 2, 0) / steps)
  return _two_steps(teacher, z, start_level(start, steps=steps, schedule=schedule), middle, end)


def _two_steps(teacher: Teacher, z: Array, level: LogSNR, middle: LogSNR, end: LogSNR) -> Array:
  """(z'' - (s''/s) z) / (a'' - (s''/s) a) of the paper, where z' and z'' follow from z by DDIM.

  Written out, it is a mean of both predictions, which no cancellation spoils, however short the
  steps are; with k = a / s their weights are k'' - k' and k' - k.
  """
  first = teacher(z, level)
  second = teacher(ddim_step(first, z, level=level, to=middle), middle)
  now, half, there = (at.over(ndim=z.ndim) for at in (level, middle, end))
  share = jnp.expm1((half - there) / 2) / jnp.expm1((now - there) / 2)
  return first + share * (second - first)
