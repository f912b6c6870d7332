"""Flow matching with straight paths: time 0 is noise, time 1 is data (Movie Gen, section 3.1.2).

Gaussian diffusion runs the other way round, and there t means something else; so times here are a
type, `FlowTime`, and nothing in this file takes a bare number for one. All arithmetic is float32.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlowTime:
  """Times of flow matching in [0, 1], one an example: 0 is noise, 1 is data."""

  value: Float[Array, " b"]


Velocity = Callable[[Float[Array, "b ..."], FlowTime], Float[Array, "b ..."]]


@dataclasses.dataclass(frozen=True)
class Flow:
  """The path x_t = t x_1 + (1 - (1 - sigma_min) t) x_0 from noise x_0 to data x_1."""

  sigma_min: float = 1e-5

  def sigma(self, time: FlowTime, *, ndim: int = 1) -> Float[Array, "b ..."]:
    """The share of noise at `time`, from exactly 1 to exactly `sigma_min`; `ndim` axes."""
    t = _over(time, ndim)
    return (1 - t) + self.sigma_min * t

  def path(
    self, noise: Float[Array, "b ..."], data: Float[Array, "b ..."], time: FlowTime
  ) -> Float[Array, "b ..."]:
    """The point of the path at `time`: `noise` at 0, `data + sigma_min * noise` at 1."""
    return _over(time, data.ndim) * data + self.sigma(time, ndim=data.ndim) * noise

  def velocity(
    self, noise: Float[Array, "b ..."], data: Float[Array, "b ..."]
  ) -> Float[Array, "b ..."]:
    """d path / d time, the same at all times: the target of the network."""
    return data - (1 - self.sigma_min) * noise

  def velocity_from_data(
    self, data: Float[Array, "b ..."], x: Float[Array, "b ..."], time: FlowTime
  ) -> Float[Array, "b ..."]:
    """The velocity of the straight line through `x` at `time` that ends at `data`."""
    return (data - (1 - self.sigma_min) * x) / self.sigma(time, ndim=x.ndim)


def _over(time: FlowTime, ndim: int) -> Float[Array, "b ..."]:
  return time.value.astype(jnp.float32).reshape(-1, *(1,) * (ndim - 1))


@dataclasses.dataclass(frozen=True)
class LogitNormal:
  """Times sigmoid(loc + scale z) of a standard normal z (Movie Gen: loc 0, scale 1)."""

  loc: float = 0.0
  scale: float = 1.0

  def draw(self, rng: Key[Array, ""]) -> Float[Array, ""]:
    """One time, from one key."""
    return jax.nn.sigmoid(self.loc + self.scale * jax.random.normal(rng))

  def probability(self, low: float, high: float) -> float:
    """The probability of a time in [low, high]."""

    def cumulative(t: float) -> float:
      if t <= 0 or t >= 1:
        return float(t >= 1)
      z = (math.log(t / (1 - t)) - self.loc) / self.scale
      return 0.5 * math.erfc(-z / math.sqrt(2))

    return cumulative(high) - cumulative(low)


def linear_times(steps: int) -> np.ndarray:
  """`steps + 1` evenly spaced times from 0 to 1, float64."""
  return np.arange(steps + 1) / steps


def linear_quadratic_times(steps: int, *, linear_steps: int) -> np.ndarray:
  """`steps + 1` times: the first half of the steps as in a uniform grid of `linear_steps` steps.

  The rest is spaced quadratically, with value and slope continuous at the joint (Movie Gen,
  section 3.4.2, 50 steps for 250 linear ones). `linear_steps == steps` is the uniform grid.

  Raises:
    ValueError: `linear_steps` is less than `steps`: times would not increase.
  """
  if linear_steps < steps:
    raise ValueError(f"linear_steps {linear_steps} is less than steps {steps}")
  linear = steps // 2
  index = np.arange(steps + 1)
  quadratic = np.maximum(index - linear, 0) / (steps - linear)
  times = index / linear_steps + (1 - steps / linear_steps) * quadratic**2
  times[-1] = 1.0  # exactly, whatever the rounding
  return times


def euler(
  velocity: Velocity, noise: Float[Array, "b ..."], *, times: np.ndarray
) -> Float[Array, "b ..."]:
  """First-order integration of `velocity` along `times`, from `noise` at times[0]; float32."""
  times = np.asarray(times, np.float32)

  def step(x, interval):
    now, then = interval
    time = FlowTime(jnp.broadcast_to(now, x.shape[:1]))
    return x + (then - now) * velocity(x, time).astype(jnp.float32), None

  x, _ = jax.lax.scan(step, noise.astype(jnp.float32), (times[:-1], times[1:]))
  return x
