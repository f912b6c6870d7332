"""Targets of progressive and guided distillation (C10 and C11)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.diffusion import gaussian_distillation as distillation
from vidgen.diffusion.gaussian import CosineSchedule, LogSNR
from vidgen.diffusion.gaussian_samplers import Method, ddim_step, sample, uniform_levels

SCHEDULE = CosineSchedule()
TARGETS = {
  "progressive": distillation.progressive_target,
  "stochastic": distillation.stochastic_target,
}


def draws(shape=(3, 5), seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def at(t):
  return SCHEDULE.logsnr(jnp.asarray(t, jnp.float32))


def teacher(z, level):
  return jnp.tanh(0.7 * z + level.angle[:, None])


def target(kind, *, start, steps, z, of=teacher, schedule=SCHEDULE):
  start, steps = jnp.asarray(start, jnp.int32), jnp.asarray(steps, jnp.int32)
  return TARGETS[kind](of, z, start=start, steps=steps, schedule=schedule)


def walked(z, *times):
  """`z` taken by the teacher along `times` [b] each; to 0 means to its prediction."""
  for now, then in zip(times, times[1:], strict=False):
    x = teacher(z, at(now))
    stepped = ddim_step(x, z, level=at(now), to=at(then))
    z = jnp.where((jnp.asarray(then) == 0)[:, None], x, stepped)
  return z


def test_one_step_of_the_student_is_two_of_the_teacher():
  i, n, z = np.array([1, 4, 8]), 8, draws()
  x = target("progressive", start=i, steps=n, z=z)
  end = LogSNR(jnp.where(i == 1, jnp.inf, at((i - 1) / n).value))
  out = ddim_step(x, z, level=at(i / n), to=end)
  np.testing.assert_allclose(out, walked(z, i / n, (i - 0.5) / n, (i - 1) / n), atol=1e-5)


def test_one_jump_of_the_stochastic_student_is_two_of_the_teacher_from_every_step():
  i, n, z = np.arange(2, 9), 8, draws((7, 5))
  x = target("stochastic", start=i, steps=n, z=z)
  out = ddim_step(x, z, level=at(i / n), to=at((i - 2) / n))
  middle = ddim_step(teacher(z, at(i / n)), z, level=at(i / n), to=at((i - 1) / n))
  there = teacher(middle, at((i - 1) / n))
  wanted = ddim_step(there, middle, level=at((i - 1) / n), to=at((i - 2) / n))
  np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_from_its_first_step_the_stochastic_student_ends_as_the_teacher_does():
  z = draws((1, 5))
  out = target("stochastic", start=[1], steps=8, z=z)
  np.testing.assert_array_equal(out, teacher(z, at([1 / 8])))


@pytest.mark.parametrize("kind", TARGETS)
def test_the_target_is_that_of_the_papers_formula(kind):
  # In float64, where its small differences keep their digits; a teacher that is x = z / 2.
  i, n, z = np.array([3, 5, 8]), 8, draws()
  x = target(kind, start=i, steps=n, z=z, of=lambda z, level: z / 2)
  half = 0.5 if kind == "progressive" else 1.0
  share = lambda t, sign: np.sqrt(1 / (1 + np.exp(-sign * np.float64(at(t).value))))[:, None]  # noqa: E731 (one line)
  times = [(i - k * half) / n for k in range(3)]
  (a, a1, a2), (s, s1, s2) = ([share(t, sign) for t in times] for sign in (1, -1))
  z0 = np.float64(z)
  z1 = a1 * z0 / 2 + s1 / s * (z0 - a * z0 / 2)
  z2 = a2 * z1 / 2 + s2 / s1 * (z1 - a1 * z1 / 2)
  np.testing.assert_allclose(x, (z2 - s2 / s * z0) / (a2 - s2 / s * a), atol=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("zero_terminal", [False, True])
def test_a_constant_teacher_is_its_own_target_however_short_the_steps(kind, zero_terminal):
  z, schedule = draws((4, 5)), CosineSchedule(zero_terminal=zero_terminal)
  constant = draws((4, 5), seed=1)
  x = target(
    kind, start=[1, 2, 500, 1024], steps=1024, z=z, of=lambda *_: constant, schedule=schedule
  )
  np.testing.assert_array_equal(x, constant)


@pytest.mark.parametrize("kind", TARGETS)
def test_rounds_share_one_program(kind):
  traced = []

  @jax.jit
  def compiled(i, n, z):
    traced.append(n)
    return target(kind, start=i, steps=n, z=z)

  z = draws()
  for n in (64, 32, 1):
    i = np.minimum(np.array([1, 7, n], np.int32), n)
    found = compiled(i, np.int32(n), z)
    np.testing.assert_allclose(found, target(kind, start=i, steps=n, z=z), atol=1e-5)
  assert len(traced) == 1


def test_a_perfect_student_of_half_the_steps_samples_as_its_teacher():
  noise, n = draws((2, 5)), 4
  rng = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(2))

  def student(z, level, scale):
    start = jnp.round(level.angle * n).astype(jnp.int32)
    return target("progressive", start=start, steps=n, z=z)

  outs = [
    sample(
      denoise, noise, rng,
      levels=uniform_levels(SCHEDULE, steps=steps), scales=jnp.ones(steps), method=Method("ddim"),
    )
    for denoise, steps in ((student, n), (lambda z, level, scale: teacher(z, level), 2 * n))
  ]  # fmt: skip
  np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)


def test_steps_start_at_their_share_of_time():
  level = distillation.start_level(jnp.asarray([8, 4]), steps=jnp.int32(8), schedule=SCHEDULE)
  np.testing.assert_allclose(level.value, [-20, 0], atol=1e-5)
