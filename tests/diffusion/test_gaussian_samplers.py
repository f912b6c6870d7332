"""Samplers of Gaussian diffusion, against closed forms and against diffusers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check

from vidgen.diffusion import gaussian_samplers as samplers
from vidgen.diffusion.gaussian import (
  CosineSchedule,
  LogSNR,
  data_from_noise,
  data_from_velocity,
  diffused,
  velocity,
)
from vidgen.diffusion.gaussian_samplers import Method
from vidgen.diffusion.guidance import guided
from vidgen.diffusion.thresholding import dynamic_threshold
from vidgen.dist.collectives import collectives_of

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "gaussian.npz")
SCHEDULE = CosineSchedule()


def pair(shape=(3, 2, 4), seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2)]


def at(*times):
  return SCHEDULE.logsnr(jnp.asarray(times, jnp.float32))


def keys(count, seed=0):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def normal_data(std):
  """The best prediction of data that are normal with mean 0 and deviation `std`."""

  def denoise(z, level, scale):
    alpha, sigma = level.alpha(ndim=z.ndim), level.sigma(ndim=z.ndim)
    return alpha * std**2 * z / (alpha**2 * std**2 + sigma**2)

  return denoise


def run(denoise, noise, *, steps, method, levels=None, scales=None):
  levels = samplers.uniform_levels(SCHEDULE, steps=steps) if levels is None else levels
  scales = np.ones(steps, np.float32) if scales is None else scales
  sample = lambda noise, rng: samplers.sample(  # noqa: E731 (jitted)
    denoise, noise, rng, levels=levels, scales=scales, method=method
  )
  return jax.jit(sample)(noise, keys(len(noise)))


def test_ddim_keeps_the_noise_and_is_a_rotation_by_the_velocity():
  x, noise = pair()
  level, to = at(0.7, 0.7, 0.7), at(0.6, 0.6, 0.6)
  z = diffused(x, noise, level)
  out = samplers.ddim_step(x, z, level=level, to=to)
  np.testing.assert_allclose(out, diffused(x, noise, to), atol=1e-5)
  turn = (np.pi / 2 * (level.angle - to.angle)).reshape(-1, 1, 1)
  rotated = jnp.cos(turn) * z - jnp.sin(turn) * velocity(x, noise, level)
  np.testing.assert_allclose(out, rotated, atol=1e-5)


def ancestral_coefficients(gamma, level, to):
  """What an ancestral step multiplies x, z and the noise by."""
  unit = jnp.eye(3)
  step = lambda x, z, n: samplers.ancestral_step(x, z, n, level=level, to=to, gamma=gamma)  # noqa: E731 (one line)
  return np.asarray(step(*unit), np.float64)


@pytest.mark.parametrize("times", [(1.0, 0.99), (0.6, 0.55), (0.02, 0.01)])
def test_ancestral_steps_keep_the_marginal_at_gamma_0(times):
  level, to = at(times[0]), at(times[1])
  of_x, of_z, of_noise = ancestral_coefficients(0.0, level, to)
  alpha, sigma = (float(s[0]) for s in (level.alpha(), level.sigma()))
  np.testing.assert_allclose(of_x + of_z * alpha, to.alpha()[0], rtol=1e-5)
  variance = (of_z * sigma) ** 2 + of_noise**2
  np.testing.assert_allclose(variance, float(to.sigma()[0]) ** 2, rtol=1e-5)


def test_gamma_goes_from_the_smaller_variance_to_the_larger_in_logs():
  level, to = at(0.6), at(0.5)
  share = -np.expm1(float(level.value[0] - to.value[0]))
  low, high = (share * float(s.sigma()[0]) ** 2 for s in (to, level))
  for gamma in (0.0, 0.3, 1.0):
    variance = ancestral_coefficients(gamma, level, to)[2] ** 2
    assert variance == pytest.approx(low ** (1 - gamma) * high**gamma, rel=1e-5)
  assert low < high


# Of the specification, from the recursion of the variance: 256 uniform steps, deviation c of data.
RATIOS = [
  (0.5, Method("ddim"), 0.994),
  (0.5, Method("ancestral", gamma=0.0), 0.985),
  (0.5, Method("ancestral", gamma=0.1), 0.987),
  (0.5, Method("ancestral", gamma=0.3), 0.991),
  (0.5, Method("ancestral", gamma=1.0), 1.004),
  (1.0, Method("ddim"), 0.995),
  (1.0, Method("ancestral", gamma=0.0), 0.991),
  (1.0, Method("ancestral", gamma=0.1), 0.992),
  (1.0, Method("ancestral", gamma=0.3), 0.993),
  (1.0, Method("ancestral", gamma=1.0), 1.000),
]


@pytest.mark.parametrize("std, method, ratio", RATIOS, ids=str)
def test_normal_data_come_out_as_wide_as_the_steps_allow(std, method, ratio):
  noise = jax.random.normal(jax.random.key(7), (1, 1 << 17))
  noise = noise / noise.std()
  out = run(normal_data(std), noise, steps=256, method=method)
  # 4 standard errors of the deviation of 2^17 values are 0.8%; ddim draws nothing.
  atol = 1e-3 if method.name == "ddim" else 8e-3
  np.testing.assert_allclose(out.std() / std, ratio, atol=atol)


def test_the_corrector_trades_a_little_of_the_noise_for_new():
  x, noise = pair()
  fresh, _ = pair(seed=1)
  level = at(0.2, 0.5, 0.8)
  out = samplers.langevin_step(x, diffused(x, noise, level), fresh, level=level, delta=0.1)
  wanted = diffused(x, 0.95 * noise + np.sqrt(0.1) * fresh, level)
  np.testing.assert_allclose(out, wanted, atol=1e-5)


@pytest.mark.parametrize("name, order", [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm++", 2)])
def test_errors_fall_with_the_order_of_the_method(name, order):
  # Evenly spaced in log-SNR, where DPM-Solver++ has its order; the last step is the prediction.
  # Ends that mirror one another would cancel the first order of euler's error.
  std, steps, errors = 0.5, (16, 32, 64, 128), []
  ends = LogSNR(jnp.asarray([-6.0, 2.0]))
  widths = jnp.sqrt(std**2 * ends.alpha() ** 2 + ends.sigma() ** 2)
  start, exact = jnp.split(widths[:, None], 2)  # the path of a normal variable is its width
  wanted = normal_data(std)(exact, LogSNR(ends.value[1:]), None)
  for n in steps:
    levels = LogSNR(jnp.append(jnp.linspace(-6, 2, n + 1), jnp.inf))
    out = run(normal_data(std), start, steps=n + 1, method=Method(name), levels=levels)
    errors.append(abs(float((out - wanted)[0, 0])))
  slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
  assert slope == pytest.approx(order, abs=0.2), errors


def test_a_perfect_student_of_long_jumps_keeps_normal_data_normal():
  # With 8 steps every jump of 2 / 8 is exact, and so is the noise put back: nothing is lost.
  std, steps = 0.5, 8

  def student(z, level, scale):
    step = jnp.round(level.angle * steps)
    to = SCHEDULE.logsnr(jnp.maximum(step - 2, 0) / steps)
    width = [jnp.sqrt(s.alpha() ** 2 * std**2 + s.sigma() ** 2) for s in (level, to)]
    ratio = to.sigma() / level.sigma()
    factor = (width[1] / width[0] - ratio) / (to.alpha() - ratio * level.alpha())
    return factor[:, None] * z

  noise = jax.random.normal(jax.random.key(7), (1, 1 << 18))
  out = run(student, noise, steps=steps, method=Method("stochastic"))
  assert out.std() / std == pytest.approx(1, abs=6e-3)  # 4 standard errors


METHODS = [
  Method("ddim"),
  Method("ancestral"),
  Method("ancestral", langevin=0.1),
  Method("euler"),
  Method("heun"),
  Method("dpm++"),
  Method("stochastic"),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_data_that_are_known_come_out_of_noise_without_signal(method):
  x, noise = pair()
  levels = samplers.uniform_levels(CosineSchedule(zero_terminal=True), steps=5)
  out = run(lambda z, level, scale: x, noise, steps=5, method=method, levels=levels)
  np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_sample_does_not_depend_on_its_batch(method):
  _, noise = pair((4, 3, 2))
  both = [run(normal_data(0.5), n, steps=5, method=method) for n in (noise, noise[:2])]
  np.testing.assert_array_equal(both[0][:2], both[1])
  assert jnp.isfinite(both[0]).all()


def test_only_methods_with_noise_depend_on_the_key():
  _, noise = pair((4, 3, 2))
  levels, scales = samplers.uniform_levels(SCHEDULE, steps=5), jnp.ones(5)
  for method in METHODS:
    one, two = (
      samplers.sample(
        normal_data(0.5), noise, keys(4, seed), levels=levels, scales=scales, method=method
      )
      for seed in (0, 1)
    )
    assert np.array_equal(one, two) == (method.name not in ("ancestral", "stochastic"))


def test_steps_draw_by_their_number_and_use_their_own_scale():
  _, noise = pair()
  rng, steps = keys(3), 4
  levels = samplers.uniform_levels(SCHEDULE, steps=steps)
  scales = samplers.oscillating_scales(steps, high=3.0)
  denoise = lambda z, level, scale: scale * normal_data(0.5)(z, level, scale)  # noqa: E731 (one line)
  draw = lambda i: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), (2, 4)))(rng)  # noqa: E731 (one line)
  every = [LogSNR(jnp.full(3, value)) for value in levels.value]
  z = noise
  for i in range(steps):
    x = denoise(z, every[i], scales[i])
    z = samplers.ancestral_step(x, z, draw(i), level=every[i], to=every[i + 1], gamma=0.3)
    x_there = denoise(z, every[i + 1], scales[i])
    z = samplers.langevin_step(x_there, z, draw(steps + i), level=every[i + 1], delta=0.1)
  method = Method("ancestral", gamma=0.3, langevin=0.1)
  out = samplers.sample(denoise, noise, rng, levels=levels, scales=scales, method=method)
  np.testing.assert_allclose(out, x, atol=1e-5)


@pytest.mark.parametrize("steps, method, message", [
  (3, Method("ddim"), "3 steps need 4 levels"),
  (4, Method("euler", langevin=0.1), "not euler"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(steps, method, message):
  _, noise = pair()
  levels = samplers.uniform_levels(SCHEDULE, steps=4)
  with pytest.raises(ValueError, match=message):
    run(normal_data(0.5), noise, steps=steps, method=method, levels=levels)


def test_a_split_batch_moves_nothing_between_devices():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  levels, scales = samplers.uniform_levels(SCHEDULE, steps=4), jnp.ones(4)

  def sample(noise, rng):
    denoise = lambda z, level, scale: dynamic_threshold(normal_data(0.5)(z, level, scale))  # noqa: E731 (one line)
    return samplers.sample(
      denoise, noise, rng, levels=levels, scales=scales, method=Method("ancestral")
    )

  noise = jax.ShapeDtypeStruct((16, 4, 4), jnp.float32, sharding=split)
  rng = jax.ShapeDtypeStruct((16,), keys(1).dtype, sharding=split)
  program = jax.jit(sample, out_shardings=split).lower(noise, rng).compile()
  assert collectives_of(program.as_text()) == []


@pytest.mark.parametrize("steps, first", [(20, 2), (256, 26), (70, 7), (8, 1), (5, 1)])
def test_scales_are_high_for_a_tenth_and_then_alternate(steps, first):
  scales = samplers.oscillating_scales(steps, high=15.0)
  np.testing.assert_array_equal(scales[:first], 15)
  np.testing.assert_array_equal(scales[first::2], 1)
  np.testing.assert_array_equal(scales[first + 1 :: 2], 15)


def test_scales_without_oscillation_are_constant():
  np.testing.assert_array_equal(samplers.oscillating_scales(9, high=6.0, low=6.0), 6)


def test_guidance_is_the_same_in_data_noise_and_velocity_and_for_a_scale_that_is_an_array():
  z, text = pair((3, 4))
  level = at(0.2, 0.5, 0.8)
  predict = lambda z, level, text: jnp.tanh(z + text + level.angle[:, None])  # noqa: E731 (one line)
  conditions = {"conditional": text, "null": jnp.zeros_like(text)}

  def in_data(convert, scale):
    through = lambda z, level, text: convert(predict(z, level, text), z, level)  # noqa: E731 (one line)
    return guided(through, **conditions, scale=scale)(z, level)

  for convert in (data_from_velocity, data_from_noise):
    outside = convert(guided(predict, **conditions, scale=4.0)(z, level), z, level)
    np.testing.assert_allclose(in_data(convert, 4.0), outside, atol=1e-4)
  same = in_data(data_from_velocity, 4.0)
  traced = jax.jit(lambda scale: in_data(data_from_velocity, scale))
  np.testing.assert_allclose(traced(jnp.float32(4)), same, atol=1e-5)
  each = traced(jnp.asarray([4.0, 1.0, 0.0]))
  rows = [in_data(data_from_velocity, scale)[i] for i, scale in enumerate((4.0, 1.0, 0.0))]
  np.testing.assert_allclose(each, rows, atol=1e-5)


def test_reconstruction_guidance_follows_the_gradient_through_the_network():
  # For x = z K and a pooling P the gradient of |a - x P|^2 is -2 (a - x P) P' K', by hand.
  rng = np.random.default_rng(3)
  network, pool, z, target = (
    rng.standard_normal(shape).astype(np.float32) for shape in ((4, 4), (4, 2), (3, 4), (3, 2))
  )
  level = at(0.3, 0.5, 0.7)
  denoise = samplers.reconstruction_guided(
    lambda z, level, scale: z @ network,
    observe=lambda x: x @ pool, observed=jnp.asarray(target), weight=9.0,
  )  # fmt: skip
  x = z @ network
  alpha = np.asarray(level.alpha())[:, None]
  wanted = x + 9.0 * alpha * (target - x @ pool) @ pool.T @ network.T
  out = denoise(jnp.asarray(z), level, jnp.float32(1))
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-3)  # values of 100


def alike_frames(std=0.5, correlation=0.95, frames=3):
  """The best prediction of clips whose frames are normal and correlated, and their covariance."""
  covariance = std**2 * ((1 - correlation) * np.eye(frames) + correlation)
  values, vectors = np.linalg.eigh(covariance)

  def denoise(z, level, scale):
    alpha, sigma = level.alpha()[:, None, None], level.sigma()[:, None, None]
    shrunk = alpha * values / (alpha**2 * values + sigma**2)
    matrix = jnp.einsum("ij,bkj,lj->bil", vectors, shrunk, vectors)
    return jnp.einsum("btf,bfd->btd", matrix, z)

  return denoise, covariance


def test_an_extended_clip_keeps_its_known_frames_and_goes_on_from_them():
  denoise, covariance = alike_frames()
  noise, _ = pair((2, 3, 500))
  known = jnp.asarray([True, False, False])
  video = 0.5 * pair((2, 3, 500), seed=1)[0]
  off = []
  for weight in (0.0, 2.0):
    extended = samplers.extended(denoise, video=video, known=known, weight=weight)
    out = run(extended, noise, steps=128, method=Method("ancestral", gamma=0.0))
    np.testing.assert_array_equal(out[:, 0], video[:, 0])
    wanted = covariance[1, 0] / covariance[0, 0] * video[:, 0]
    off.append(float(jnp.abs((out[:, 1] * video[:, 0]).mean() / (wanted * video[:, 0]).mean() - 1)))
  assert off[1] < off[0] and off[1] < 0.1, off


def test_frames_that_are_not_known_may_be_anything():
  denoise, _ = alike_frames()
  noise, video = pair((2, 3, 5))
  known = jnp.asarray([[True, False, True], [False, False, True]])
  outs = [
    samplers.extended(denoise, video=v, known=known, weight=2.0)(
      noise, at(0.5, 0.5), jnp.float32(1)
    )
    for v in (video, jnp.where(known[..., None], video, jnp.nan))
  ]
  np.testing.assert_array_equal(*outs)
  assert jnp.isfinite(outs[0]).all()


def test_known_frames_are_at_the_level_of_each_step():
  denoise, _ = alike_frames()
  noise, video = pair((1, 3, 5))
  levels = samplers.uniform_levels(SCHEDULE, steps=6)
  seen = []

  def spy(z, level, scale):
    jax.debug.callback(lambda z, level: seen.append((z, level)), z, level.value, ordered=True)
    return denoise(z, level, scale)

  extended = samplers.extended(spy, video=video, known=jnp.asarray([True, False, True]), weight=0.0)
  jax.block_until_ready(run(extended, noise, steps=6, method=Method("ddim"), levels=levels))
  assert len(seen) == 6
  for z, value in seen[1:]:
    wanted = diffused(video, noise, LogSNR(jnp.asarray(value)))
    np.testing.assert_allclose(z[:, ::2], wanted[:, ::2], atol=2e-4)  # alpha is 4.5e-5 at the start


def network(z, level, scale):
  angle = level.angle.reshape(-1, *(1,) * (z.ndim - 1))
  return jnp.tanh(z @ FIXTURE["matrix"] + angle)


def from_velocity(z, level, scale):
  return data_from_velocity(network(z, level, scale), z, level)


def thresholded(z, level, scale):
  x = data_from_noise(network(z, level, scale), z, level)
  return dynamic_threshold(x, percentile=0.8)


def deterministic(name, method, denoise):
  levels = LogSNR(jnp.asarray(FIXTURE[f"{name}/levels"]))
  noise = jnp.asarray(FIXTURE["z"])

  def outputs():
    out = run(denoise, noise, steps=20, method=method, levels=levels)
    return {"data after 20 steps": (out, FIXTURE[name][-1])}

  return outputs


def ancestral(name, gamma):
  def outputs():
    levels = [LogSNR(jnp.full(2, value)) for value in FIXTURE[f"{name}/levels"]]
    z, found = jnp.asarray(FIXTURE["z"]), []
    for i, noise in enumerate(FIXTURE["noise"]):
      x = from_velocity(z, levels[i], None)
      step = {"level": levels[i], "to": levels[i + 1], "gamma": gamma}
      z = samplers.ancestral_step(x, z, jnp.asarray(noise), **step) if i < 19 else x
      found.append(z)
    return {"all 20 steps": (jnp.stack(found), FIXTURE[name])}

  return outputs


VERSION = "diffusers==0.42.1"
CASES = [
  Case(
    "diffusion.gaussian_samplers", f"{VERSION}, DDIMScheduler",
    "20 steps, v", 1e-5, deterministic("ddim", Method("ddim"), from_velocity),
  ),
  Case(
    "diffusion.gaussian_samplers", f"{VERSION}, DDIMScheduler",
    "20 steps, v, zero terminal SNR", 1e-5, deterministic("zero", Method("ddim"), from_velocity),
  ),
  Case(
    "diffusion.gaussian_samplers", f"{VERSION}, DDIMScheduler",
    "20 steps, eps, dynamic thresholding", 1e-5,
    deterministic("thresholded", Method("ddim"), thresholded),
  ),
  Case(
    "diffusion.gaussian_samplers", f"{VERSION}, DDPMScheduler",
    "20 steps, v, fixed_small, which is gamma 0", 1e-5, ancestral("fixed_small", 0.0),
  ),
  Case(
    "diffusion.gaussian_samplers", f"{VERSION}, DDPMScheduler",
    "20 steps, v, fixed_large, which is gamma 1", 1e-5, ancestral("fixed_large", 1.0),
  ),
  Case(
    "diffusion.gaussian_samplers", f"{VERSION}, DPMSolverMultistepScheduler",
    "20 steps, v, dpmsolver++ of order 2", 1e-5,
    deterministic("dpm++", Method("dpm++"), from_velocity),
  ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reference}, {case.config}")
def test_trajectories_equal_those_of_diffusers(case):
  check(case)
