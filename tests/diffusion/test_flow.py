"""Flow matching (MGV-3, 4, 5 and 9) and guidance (MGV-6)."""

import itertools
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check

from vidgen.diffusion import flow
from vidgen.diffusion.guidance import guided
from vidgen.dist.collectives import collectives_of

FIXTURE = np.load(Path(__file__).parent.parent / "fixtures" / "movie_gen.npz")
FLOW = flow.Flow(sigma_min=1e-5)


def pair(shape=(3, 2, 4), seed=0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2)]


def at(*times):
  return flow.FlowTime(jnp.asarray(times, jnp.float32))


def test_mgv_3_the_path_goes_from_noise_to_data_at_its_velocity():
  noise, data = pair()
  np.testing.assert_array_equal(FLOW.path(noise, data, at(0, 0, 0)), noise)
  end = np.asarray(data, np.float64) + 1e-5 * np.asarray(noise, np.float64)
  np.testing.assert_allclose(FLOW.path(noise, data, at(1, 1, 1)), end, rtol=1e-6)
  step = 0.25  # the path is straight: a long step has no more error, and less rounding
  early, late = (FLOW.path(noise, data, at(t, t, t)) for t in (0.5, 0.5 + step))
  np.testing.assert_allclose((late - early) / step, FLOW.velocity(noise, data), atol=1e-5)


def test_the_share_of_noise_is_exact_at_both_ends():
  # 1 - (1 - 1e-5), computed so in float32, would be 0.1% off.
  np.testing.assert_array_equal(FLOW.sigma(at(0, 1)), np.float32([1, 1e-5]))


def test_a_bare_number_is_no_time():
  noise, data = pair()
  with pytest.raises(TypeError):
    FLOW.path(noise, data, jnp.full(3, 0.5))  # type: ignore[arg-type]  # this is the point


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.floats(0, 0.99), st.integers(0, 100))
def test_the_velocity_follows_from_the_data(t, seed):
  noise, data = pair(seed=seed)
  x, velocity = FLOW.path(noise, data, at(t, t, t)), FLOW.velocity(noise, data)
  scale = 1 / (1 - t)  # the division that the conversion holds
  back = FLOW.velocity_from_data(data, x, at(t, t, t))
  np.testing.assert_allclose(back, velocity, atol=1e-5 * scale)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
def test_mgv_4_euler_is_exact_for_a_constant_field_on_any_grid(gaps):
  noise, data = pair()
  times = np.concatenate([[0], np.cumsum(gaps)])
  out = flow.euler(lambda x, t: FLOW.velocity(noise, data), noise, times=times / times[-1])
  np.testing.assert_allclose(out, data + 1e-5 * noise, atol=1e-5)


def euler():
  matrix = jnp.asarray(FIXTURE["euler/matrix"])
  times = np.append(FIXTURE["schedule/250"], 1.0)
  out = flow.euler(
    lambda x, t: x @ matrix + t.value[:, None], jnp.asarray(FIXTURE["euler/noise"]), times=times
  )
  return {"after 50 steps": (out, FIXTURE["euler/out"])}


def schedule():
  times = {n: flow.linear_quadratic_times(50, linear_steps=n)[:50] for n in (250, 1000)}
  return {f"{n} linear": (found, FIXTURE[f"schedule/{n}"]) for n, found in times.items()}


CASES = [
  Case(
    "diffusion.flow", "diffusers==0.42.1, FlowMatchEulerDiscreteScheduler",
    "50 steps, linear-quadratic, a field of x and t", 1e-4, euler,
  ),
  Case(
    "diffusion.flow", "diffusers==0.42.1, Mochi's linear_quadratic_schedule",
    "50 steps for 250 and 1,000", 1e-9, schedule,
  ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config)
def test_sampling_equals_diffusers(case):
  check(case)


def test_euler_sees_each_time_but_the_last():
  seen = flow.euler(
    lambda x, t: jnp.broadcast_to(t.value[:, None], x.shape),
    jnp.zeros((2, 1)),
    times=flow.linear_times(2),
  )
  np.testing.assert_allclose(seen, [[0.25]] * 2)  # 0.5 * 0 + 0.5 * 0.5


@pytest.mark.parametrize("linear_steps", [250, 1000])
def test_mgv_5_the_schedule_is_linear_then_quadratic(linear_steps):
  times = flow.linear_quadratic_times(50, linear_steps=linear_steps)
  np.testing.assert_allclose(times[:26], np.arange(26) / linear_steps, rtol=1e-12)
  assert len(times) == 51 and times[-1] == 1 and (np.diff(times) > 0).all()


def test_mgv_5_the_reports_own_numbers():
  times = flow.linear_quadratic_times(50, linear_steps=250)
  np.testing.assert_allclose(times[24:29], [0.096, 0.1, 0.10528, 0.11312, 0.12352], atol=1e-12)
  assert times[50] - times[49] == pytest.approx(0.0667, abs=5e-5)
  assert flow.linear_quadratic_times(50, linear_steps=1000)[26] == pytest.approx(0.02752)


def test_mgv_5_as_many_linear_steps_as_steps_is_the_uniform_grid():
  uniform = flow.linear_quadratic_times(50, linear_steps=50)
  np.testing.assert_allclose(uniform, flow.linear_times(50), atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
def test_any_number_of_steps_increases_from_zero_to_one(steps):
  times = flow.linear_quadratic_times(steps, linear_steps=250)
  assert times[0] == 0 and times[-1] == 1 and len(times) == steps + 1
  assert (np.diff(times) > 0).all()


def test_fewer_linear_steps_than_steps_are_refused():
  with pytest.raises(ValueError, match="linear_steps 20 is less than steps 50"):
    flow.linear_quadratic_times(50, linear_steps=20)


def test_mgv_9_times_are_logit_normal():
  count = 200_000
  times = jax.vmap(flow.LogitNormal().draw)(jax.random.split(jax.random.key(0), count))
  assert times.mean() == pytest.approx(0.5, abs=4 * 0.2082 / count**0.5)
  assert times.std() == pytest.approx(0.2082, abs=2e-3)
  error = 4 * (0.014 / count) ** 0.5
  assert (times < 0.1).mean() == pytest.approx(0.0140, abs=error)
  assert (times > 0.9).mean() == pytest.approx(0.0140, abs=error)


@pytest.mark.parametrize("loc, scale", [(0.0, 1.0), (-0.8, 0.6)])
def test_probabilities_of_times_are_their_frequencies(loc, scale):
  times = flow.LogitNormal(loc=loc, scale=scale)
  drawn = jax.vmap(times.draw)(jax.random.split(jax.random.key(1), 100_000))
  edges = (0.0, 0.25, 0.5, 0.75, 1.0)
  for low, high in itertools.pairwise(edges):
    frequency = ((drawn >= low) & (drawn < high)).mean()
    assert frequency == pytest.approx(times.probability(low, high), abs=0.007)
  assert times.probability(0.0, 1.0) == 1


def predict(x, time, condition):
  return x * condition + time.value[:, None]


def test_mgv_6_guidance_of_one_is_conditional_and_of_zero_null_bit_for_bit():
  x, condition = pair((3, 4))
  time = at(0.1, 0.2, 0.3)
  arguments = {"conditional": condition, "null": condition - 1}
  one = guided(predict, **arguments, scale=1.0)(x, time)
  zero = guided(predict, **arguments, scale=0.0)(x, time)
  np.testing.assert_array_equal(one, predict(x, time, condition))
  np.testing.assert_array_equal(zero, predict(x, time, condition - 1))


def test_mgv_6_guidance_of_one_skips_the_null_pass():
  sizes = []

  def spy(x, time, condition):
    sizes.append(len(x))
    return x

  x, condition = pair((3, 4))
  for scale in (1.0, 0.0, 7.5):
    guided(spy, conditional=condition, null=condition, scale=scale)(x, at(0.1, 0.2, 0.3))
  assert sizes == [3, 3, 6]


def test_guidance_extrapolates_from_null_through_conditional():
  x, condition = pair((3, 4))
  time = at(0.1, 0.2, 0.3)
  out = guided(predict, conditional=condition, null=condition - 1, scale=7.5)(x, time)
  null, text = predict(x, time, condition - 1), predict(x, time, condition)
  np.testing.assert_allclose(out, null + 7.5 * (text - null), rtol=1e-5, atol=1e-5)


def test_guidance_over_a_split_batch_moves_nothing_between_devices():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

  def velocity(x, text):
    predict = lambda x, time, text: jnp.tanh(x + text + time.value[:, None])  # noqa: E731 (one line)
    field = guided(predict, conditional=text, null=jnp.zeros_like(text), scale=3.0)
    return field(x, flow.FlowTime(jnp.full(16, 0.5)))

  x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=split)
  program = jax.jit(velocity, out_shardings=split).lower(x, x).compile()
  assert collectives_of(program.as_text()) == []
