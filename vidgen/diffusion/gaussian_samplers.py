"""Samplers of Gaussian diffusion: from noise at levels[0] to data, all in float32.

VDM below is Video Diffusion Models (Ho et al., 2022).

Whatever has been done to the predicted data, the noise of a step is computed from them again: a
prediction of noise from before guidance or thresholding would no longer belong to them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vidgen.diffusion.gaussian import (
  LogSNR,
  Schedule,
  diffused_further,
  noise_from_data,
  velocity_from_data,
)

Name = Literal["ddim", "ancestral", "euler", "heun", "dpm++", "stochastic"]
# (z [b ...], levels [b], guidance scale []) to data [b ...], after guidance and thresholding
Denoise = Callable[[Float[Array, "b ..."], LogSNR, Float[Array, ""]], Float[Array, "b ..."]]


@dataclasses.dataclass(frozen=True)
class Method:
  """How a step is made.

  ddim: deterministic, first order (Song et al., 2021).
  ancestral: with noise, whose variance is interpolated by `gamma` from the smaller (0) to the
    larger (1) bound, in logs (VDM; 0.3 for text to video there). `langevin` is the
    delta of a corrector after each step, 0 for none, 0.1 in VDM; it evaluates the network again.
  euler, heun: the ordinary differential equation of probability flow in the angle, where the
    velocity is v: first and second order; heun evaluates the network twice a step.
  dpm++: DPM-Solver++ (2M), second order in the log-SNR from one evaluation a step (Lu et al.,
    2022). Levels uniform in time are wide apart in it at both ends, and cost it some of that.
  stochastic: for a student of guided distillation, a deterministic step of twice the length, then
    noise back (Meng et al., 2023): the student is trained for jumps over two levels.
  """

  name: Name = "ddim"
  gamma: float = 0.3
  langevin: float = 0.0


def uniform_levels(schedule: Schedule, *, steps: int) -> LogSNR:
  """`steps + 1` levels, evenly spaced in time from 1, noise, to 0, data."""
  return schedule.logsnr(jnp.asarray(1 - np.arange(steps + 1) / steps, jnp.float32))


def oscillating_scales(
  steps: int, *, high: float, low: float = 1.0, first: float = 0.1
) -> Float[np.ndarray, " steps"]:
  """Guidance scales, float32: `high` for the `first` share of steps, then low, high, low, ...

  Imagen Video, for its base and first two super-resolution models. The share is not given there.
  """
  scales = np.full(steps, high, np.float32)
  start = math.ceil(first * steps - 1e-9)  # 0.1 * 70 is more than 7
  scales[start::2] = low
  return scales


def ddim_step(
  x: Float[Array, "*shape"], z: Float[Array, "*shape"], *, level: LogSNR, to: LogSNR
) -> Float[Array, "*shape"]:
  """`z` at `level`, whose data are `x`, taken `to` less noise with its own noise kept."""
  noise_kept = jnp.exp(to.log_sigma(ndim=z.ndim) - level.log_sigma(ndim=z.ndim))
  return to.alpha(ndim=z.ndim) * x + noise_kept * (z - level.alpha(ndim=z.ndim) * x)


def ancestral_step(
  x: Float[Array, "*shape"],
  z: Float[Array, "*shape"],
  noise: Float[Array, "*shape"],
  *,
  level: LogSNR,
  to: LogSNR,
  gamma: float,
) -> Float[Array, "*shape"]:
  """A draw of `z` at `level`, whose data are `x`, at `to`, which has less noise (VDM).

  The variance is that of q(z_to | z, x) at `gamma` 0, and that of q(z | z_to) at 1.
  """
  n = z.ndim
  sigma_ratio = to.log_sigma(ndim=n) - level.log_sigma(ndim=n)
  from_z = jnp.exp(level.log_alpha(ndim=n) - to.log_alpha(ndim=n) + 2 * sigma_ratio)
  fresh = -jnp.expm1(level.over(ndim=n) - to.over(ndim=n))
  mean = from_z * z + fresh * to.alpha(ndim=n) * x
  log_std = (1 - gamma) * to.log_sigma(ndim=n) + gamma * level.log_sigma(ndim=n)
  return mean + jnp.sqrt(fresh) * jnp.exp(log_std) * noise


def langevin_step(
  x: Float[Array, "*shape"],
  z: Float[Array, "*shape"],
  noise: Float[Array, "*shape"],
  *,
  level: LogSNR,
  delta: float,
) -> Float[Array, "*shape"]:
  """`z` moved by one step of Langevin dynamics at its own `level` (VDM)."""
  down = 0.5 * delta * noise_from_data(x, z, level)
  return z + level.sigma(ndim=z.ndim) * (math.sqrt(delta) * noise - down)


def sample(
  denoise: Denoise,
  noise: Float[Array, "b ..."],
  rng: Key[Array, " b"],
  *,
  levels: LogSNR,
  scales: Float[Array, " steps"] | Float[np.ndarray, " steps"],
  method: Method,
) -> Float[Array, "b ..."]:
  """Data [b ...] from `noise`, in `steps` steps along `levels` [steps + 1] from noise to data.

  `scales` are the guidance scales of the steps. What the last step gives is the predicted data,
  for every method. The noise of step i of a sample is drawn from fold_in(its key, i), that of the
  corrector from fold_in(its key, steps + i).

  Raises:
    ValueError: another number of levels, a method that is not known, or a corrector for a method
      other than ancestral.
  """
  steps = len(scales)
  if levels.value.shape != (steps + 1,):
    raise ValueError(f"{steps} steps need {steps + 1} levels, got {levels.value.shape}")
  if method.langevin and method.name != "ancestral":
    raise ValueError(f"the corrector follows ancestral steps, not {method.name}")
  logsnr = levels.value.astype(jnp.float32)
  index = jnp.arange(steps)
  half = jnp.diff(logsnr) / 2
  # half of h / h_before of DPM-Solver++; nothing is known before the first step
  history = jnp.where(index > 0, half / (2 * jnp.roll(half, 1)), 0)

  def drawn(i):
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), noise.shape[1:]))(rng)

  def data(z, level, scale):
    return denoise(z, LogSNR(jnp.broadcast_to(level, z.shape[:1])), scale).astype(jnp.float32)

  def step(carry, inputs):
    z, before = carry
    i, now, then, beyond, scale, ratio = inputs
    level, to = LogSNR(now), LogSNR(then)
    x = data(z, now, scale)
    match method.name:
      case "ddim":
        stepped = ddim_step(x, z, level=level, to=to)
      case "ancestral":
        stepped = ancestral_step(x, z, drawn(i), level=level, to=to, gamma=method.gamma)
        if method.langevin:
          seen = data(stepped, then, scale)
          fresh = drawn(steps + i)
          stepped = langevin_step(seen, stepped, fresh, level=to, delta=method.langevin)
      case "euler" | "heun":
        turn = (math.pi / 2) * (level.angle - to.angle)
        v = velocity_from_data(x, z, level)
        stepped = z - turn * v
        if method.name == "heun":
          there = velocity_from_data(data(stepped, then, scale), stepped, to)
          stepped = z - turn * (v + there) / 2
      case "dpm++":
        stepped = ddim_step(x + ratio * (x - before), z, level=level, to=to)
      case "stochastic":
        jumped = ddim_step(x, z, level=level, to=LogSNR(beyond))
        stepped = diffused_further(jumped, drawn(i), LogSNR(beyond), to)
      case _:
        raise ValueError(f"unknown method {method.name!r}")
    return (jnp.where(i == steps - 1, x, stepped), x), None

  start = noise.astype(jnp.float32)
  beyond = logsnr[jnp.minimum(index + 2, steps)]
  xs = (index, logsnr[:-1], logsnr[1:], beyond, jnp.asarray(scales, jnp.float32), history)
  (x, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), xs)
  return x


def reconstruction_guided(
  denoise: Denoise,
  *,
  observe: Callable[[Float[Array, "b ..."]], Array],
  observed: Float[Array, "b ..."],
  weight: float,
) -> Denoise:
  """Predicted data drawn to those of which `observe` shows `observed` (VDM, section 3.1).

  x - (weight alpha / 2) d |observed - observe(x)|^2 / d z, the sum over all that is observed of an
  example. `observe` is differentiable, a downsampling for super-resolution; the gradient goes
  through the network. Threshold what comes out, not what goes in: clipped values have none.
  """

  def drawn(z: Array, level: LogSNR, scale: Array) -> Array:
    def error(z: Array) -> tuple[Array, Array]:
      x = denoise(z, level, scale)
      return jnp.sum((observed - observe(x)) ** 2), x

    slope, x = jax.grad(error, has_aux=True)(z)
    return x - (weight / 2) * level.alpha(ndim=z.ndim) * slope

  return drawn


def extended(
  denoise: Denoise,
  *,
  video: Float[Array, "b t ..."],
  known: Bool[Array, "b t"] | Bool[Array, " t"],
  weight: float,
) -> Denoise:
  """`reconstruction_guided` by the frames of `video` that are `known`; the others may be anything.

  The predicted data of known frames are those frames themselves, so steps that keep the marginal
  (ddim, ancestral of gamma 0, stochastic) give just q(z | video) there: the replacement of VDM,
  section 3.1, with noise that is consistent from step to step.
  """
  mask = jnp.broadcast_to(known, video.shape[:2]).reshape(
    *video.shape[:2], *(1,) * (video.ndim - 2)
  )
  frames = jnp.where(mask, video, 0)
  draw = reconstruction_guided(
    denoise, observe=lambda x: jnp.where(mask, x, 0), observed=frames, weight=weight
  )
  return lambda z, level, scale: jnp.where(mask, frames, draw(z, level, scale))
