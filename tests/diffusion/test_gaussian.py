"""Levels, schedules, conversions and losses of Gaussian diffusion."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check

from vidgen.diffusion import gaussian
from vidgen.diffusion.gaussian import CosineSchedule, LinearSchedule, LogSNR

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "gaussian.npz")
TIMES = (0.05, 0.3, 0.5, 0.9, 0.999)
WEIGHTS = ("v", "x", "eps", "truncated_snr")


def pair(shape=(3, 2, 4), seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2)]


def at(*times, schedule=CosineSchedule()):  # noqa: B008 (frozen)
  return schedule.logsnr(jnp.asarray(times, jnp.float32))


def exact(logsnr):
  """alpha and sigma in float64."""
  logsnr = np.asarray(logsnr, np.float64)
  return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def test_the_cosine_schedule_falls_from_20_to_minus_20():
  value = CosineSchedule().logsnr(jnp.linspace(0, 1, 1001)).value
  assert (np.diff(value) < 0).all()
  np.testing.assert_allclose([value[0], value[500], value[-1]], [20, 0, -20], atol=1e-5)


def test_the_cosine_schedule_is_the_cosine_of_time():
  t = np.linspace(0, 1, 1001)
  level = CosineSchedule().logsnr(jnp.asarray(t, jnp.float32))
  np.testing.assert_allclose(level.alpha(), np.cos(np.pi * t / 2), atol=1e-4)
  np.testing.assert_allclose(level.angle, t, atol=1e-4)


def test_the_ends_of_the_cosine_schedule_keep_their_digits():
  # Near the ends a step of 1e-3 must change the log-SNR by what it does in float64.
  t = np.float32([1e-4, 1e-3, 0.999, 0.9999])
  end = np.arctan(np.exp(-10.0))
  angle = (np.pi / 2 - 2 * end) * t.astype(np.float64) + end
  np.testing.assert_allclose(at(*t).value, -2 * np.log(np.tan(angle)), rtol=1e-5)


@pytest.mark.parametrize("schedule", [CosineSchedule, LinearSchedule])
def test_zero_terminal_has_no_signal_at_the_end_and_the_same_start(schedule):
  level, usual = (at(0, 0.5, 1, schedule=schedule(zero_terminal=z)) for z in (True, False))
  assert np.isneginf(level.value[2]) and level.alpha()[2] == 0 and level.sigma()[2] == 1
  np.testing.assert_allclose(level.value[0], usual.value[0], atol=1e-4)
  assert np.isfinite(level.value[:2]).all() and level.value[1] <= usual.value[1]


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.floats(-40, 40, width=32))
def test_shares_and_angle_are_those_of_float64(value):
  level = LogSNR(jnp.asarray([value], jnp.float32))
  alpha, sigma = exact([value])
  np.testing.assert_allclose(level.alpha(), alpha, rtol=1e-5)
  np.testing.assert_allclose(level.sigma(), sigma, rtol=1e-5)
  np.testing.assert_allclose(level.angle, 2 / np.pi * np.arctan2(sigma, alpha), rtol=1e-5)
  np.testing.assert_allclose(level.alpha() ** 2 + level.sigma() ** 2, 1, atol=1e-6)


def test_infinite_levels_are_data_and_noise():
  level = LogSNR(jnp.asarray([jnp.inf, -jnp.inf]))
  np.testing.assert_array_equal(level.alpha(), [1, 0])
  np.testing.assert_array_equal(level.sigma(), [0, 1])
  np.testing.assert_array_equal(level.angle, [0, 1])


def test_a_level_a_frame_is_of_that_frame():
  x, noise = pair((2, 3, 4, 4, 1))
  level = LogSNR(jnp.asarray(np.random.default_rng(1).normal(size=(2, 3)), jnp.float32))
  whole = gaussian.diffused(x, noise, level)
  frame = gaussian.diffused(x[:, 1], noise[:, 1], LogSNR(level.value[:, 1]))
  np.testing.assert_array_equal(whole[:, 1], frame)


def test_a_bare_number_is_no_level():
  x, noise = pair()
  with pytest.raises(TypeError):
    gaussian.diffused(x, noise, jnp.full(3, 0.5))  # type: ignore[arg-type]  # this is the point


@pytest.mark.parametrize("t", TIMES)
def test_conversions_go_there_and_back(t):
  x, noise = pair()
  level = at(t, t, t)
  alpha, sigma = exact(level.value)
  z, v = gaussian.diffused(x, noise, level), gaussian.velocity(x, noise, level)
  np.testing.assert_allclose(gaussian.data_from_velocity(v, z, level), x, atol=1e-5)
  np.testing.assert_allclose(gaussian.noise_from_velocity(v, z, level), noise, atol=1e-5)
  # These divide by a share, and so does their rounding.
  atol = 2e-6 / min(alpha[0], sigma[0])
  np.testing.assert_allclose(gaussian.data_from_noise(noise, z, level), x, atol=atol)
  np.testing.assert_allclose(gaussian.noise_from_data(x, z, level), noise, atol=atol)
  np.testing.assert_allclose(gaussian.velocity_from_data(x, z, level), v, atol=atol)


def test_the_velocity_is_the_derivative_by_the_angle():
  x, noise = pair((1, 5))
  z = lambda t: gaussian.diffused(x, noise, CosineSchedule().logsnr(t[None]))  # noqa: E731 (one line)
  t = jnp.float32(0.3)
  _, slope = jax.jvp(z, (t,), (jnp.float32(1),))
  turn = np.pi / 2 - 2 * np.arctan(np.exp(-10))  # radians from t = 0 to 1
  v = gaussian.velocity(x, noise, CosineSchedule().logsnr(t[None]))
  np.testing.assert_allclose(slope, turn * v, atol=1e-4)  # of log tan, twice


def test_no_signal_leaves_the_velocity_minus_the_data():
  x, noise = pair()
  level = LogSNR(jnp.full(3, -jnp.inf))
  np.testing.assert_array_equal(gaussian.velocity_from_data(x, noise, level), -x)


@pytest.mark.parametrize("t", TIMES)
def test_weights_turn_the_error_of_v_into_that_of_the_others(t):
  (x, noise), (out, _) = pair(), pair(seed=1)
  level = at(t, t, t)
  alpha, sigma = exact(level.value)
  z, v = gaussian.diffused(x, noise, level), gaussian.velocity(x, noise, level)
  error = lambda a, b: np.mean(np.square(np.float64(a) - np.float64(b)), (1, 2))  # noqa: E731 (one line)
  of_v = error(out, v)
  of_x = error(gaussian.data_from_velocity(out, z, level), x)
  of_noise = error(gaussian.noise_from_velocity(out, z, level), noise)
  snr = alpha**2 / sigma**2
  np.testing.assert_allclose(of_noise, snr * of_x, rtol=1e-4)
  np.testing.assert_allclose(of_v, (snr + 1) * of_x, rtol=1e-4)
  wanted = {"v": of_v, "x": of_x, "eps": of_noise, "truncated_snr": np.maximum(of_x, of_noise)}
  for kind, loss in wanted.items():
    np.testing.assert_allclose(gaussian.velocity_weight(kind, level) * of_v, loss, rtol=1e-4)


def test_at_no_signal_only_a_loss_of_noise_has_no_weight():
  level = LogSNR(jnp.asarray([-jnp.inf]))
  weights = {kind: float(gaussian.velocity_weight(kind, level)[0]) for kind in WEIGHTS}
  assert weights == {"v": 1, "x": 1, "eps": 0, "truncated_snr": 1}


def test_diffusing_further_is_diffusing_at_once():
  # The coefficients, from unit vectors: that of x multiplies, those of noise add in squares.
  near, far = at(0.3), at(0.8)
  one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
  kept = gaussian.diffused_further(one, zero, near, far)
  fresh = gaussian.diffused_further(zero, one, near, far)
  np.testing.assert_allclose(kept * near.alpha(), far.alpha()[None], rtol=1e-5)
  variance = (kept * near.sigma()) ** 2 + fresh**2
  np.testing.assert_allclose(variance, far.sigma()[None] ** 2, rtol=1e-5)


def test_augmentation_at_time_0_changes_nothing_that_can_be_seen():
  x, noise = pair()
  out = gaussian.diffused(x, noise, at(0, 0, 0))
  np.testing.assert_allclose(out, x, atol=4.6e-5 * float(jnp.abs(noise).max()))


def linear():
  t = jnp.linspace(0, 1, 1000)
  return {"levels": (LinearSchedule().logsnr(t).value, FIXTURE["linear"])}


def linear_zero():
  t = jnp.linspace(0, 1, 1000)
  found = LinearSchedule(zero_terminal=True).logsnr(t)
  alpha = np.sqrt(1 / (1 + np.exp(-FIXTURE["linear_zero"].astype(np.float64))))
  return {
    "levels": (found.value[:-1], FIXTURE["linear_zero"][:-1]),
    "alpha": (found.alpha(), alpha),
  }


CASES = [
  Case(
    "diffusion.gaussian", "diffusers==0.42.1, the levels of DDPMScheduler",
    "1,000 linear betas", 1e-5, linear,
  ),
  Case(
    "diffusion.gaussian", "diffusers==0.42.1, rescale_zero_terminal_snr",
    "1,000 linear betas", 1e-4, linear_zero,  # alpha near its end is a small difference
  ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reference)
def test_linear_levels_equal_those_of_diffusers(case):
  check(case)
