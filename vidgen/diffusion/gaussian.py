"""Gaussian diffusion in continuous time, variance preserving: t = 0 is data, t = 1 is noise.

z = alpha x + sigma noise with alpha^2 + sigma^2 = 1. A noise level is a type, `LogSNR`, and nothing
here takes a bare number for one; flow matching, where t runs the other way, has a type of its own.
Everything is float32 and computed from the log-SNR, never from alpha, so that neither end loses
digits (Salimans and Ho, 2022; Kingma et al., 2021).
"""

import dataclasses
import math
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Weight = Literal["v", "x", "eps", "truncated_snr"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogSNR:
  """Noise levels as log(alpha^2 / sigma^2), one an example [b] or a frame [b t].

  May be infinite: inf is data, -inf noise without any signal.
  """

  value: Float[Array, "*batch"]

  def over(self, *, ndim: int) -> Float[Array, "..."]:
    """`value` with trailing axes of 1 up to `ndim` axes."""
    return self.value.astype(jnp.float32).reshape(
      *self.value.shape, *(1,) * (ndim - self.value.ndim)
    )

  def log_alpha(self, *, ndim: int = 0) -> Float[Array, "..."]:
    """The log of `alpha`."""
    return 0.5 * jax.nn.log_sigmoid(self.over(ndim=ndim))

  def log_sigma(self, *, ndim: int = 0) -> Float[Array, "..."]:
    """The log of `sigma`."""
    return 0.5 * jax.nn.log_sigmoid(-self.over(ndim=ndim))

  def alpha(self, *, ndim: int = 0) -> Float[Array, "..."]:
    """The share of data in [0, 1], with trailing axes of 1 up to `ndim` axes."""
    return jnp.exp(self.log_alpha(ndim=ndim))

  def sigma(self, *, ndim: int = 0) -> Float[Array, "..."]:
    """The share of noise in [0, 1], with trailing axes of 1 up to `ndim` axes."""
    return jnp.exp(self.log_sigma(ndim=ndim))

  @property
  def angle(self) -> Float[Array, "*batch"]:
    """(2 / pi) atan(sigma / alpha): 0 is data, 1 noise. What networks are told, always finite."""
    return (2 / math.pi) * jnp.arctan(jnp.exp(-0.5 * self.value.astype(jnp.float32)))


@runtime_checkable
class Schedule(Protocol):
  """A noise level for every time in [0, 1], less and less signal."""

  def logsnr(self, t: Float[Array, "*batch"]) -> LogSNR:
    """The levels at times `t` in [0, 1], 0 data and 1 noise."""
    ...


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
  """alpha = cos(pi t / 2), its log-SNR from `high` at 0 to `low` at 1 (VDM: 20 and -20).

  The angle is linear in t between the two ends (Salimans and Ho, 2022). With `zero_terminal` the
  noisy end has no signal at all: `low` does not matter, and the log-SNR at 1 is -inf.
  """

  low: float = -20.0
  high: float = 20.0
  zero_terminal: bool = False

  def logsnr(self, t: Float[Array, "*batch"]) -> LogSNR:
    """The levels at times `t` in [0, 1], 0 data and 1 noise."""
    start = math.atan(math.exp(-self.high / 2))
    end = 0.0 if self.zero_terminal else math.atan(math.exp(self.low / 2))
    slope = math.pi / 2 - start - end
    t = t.astype(jnp.float32)
    early = t <= 0.5  # angles are counted from the nearer end, where they are small and exact
    angle = slope * jnp.where(early, t, 1 - t) + jnp.where(early, start, end)
    return LogSNR(jnp.where(early, -2.0, 2.0) * jnp.log(jnp.tan(angle)))


@dataclasses.dataclass(frozen=True)
class LinearSchedule:
  """The `steps` discrete levels of linear betas, made continuous (Ho et al., 2020; Imagen).

  t = 0 is the first level and t = 1 the last, k / (steps - 1) the one after k more steps; between
  them log(alpha^2) is linear. With `zero_terminal` alpha is shifted and scaled so that it is 0 at
  the end and unchanged at the start (Lin et al., 2023).
  """

  first: float = 1e-4
  last: float = 0.02
  steps: int = 1000
  zero_terminal: bool = False

  def logsnr(self, t: Float[Array, "*batch"]) -> LogSNR:
    """The levels at times `t` in [0, 1], 0 data and 1 noise."""
    betas = np.linspace(self.first, self.last, self.steps)
    levels = np.cumsum(np.log1p(-betas)) / 2
    place = t.astype(jnp.float32) * (self.steps - 1)
    log_alpha = jnp.interp(
      place, np.arange(self.steps, dtype=np.float32), levels.astype(np.float32)
    )
    if self.zero_terminal:
      share = jnp.minimum(levels[-1].astype(np.float32) - log_alpha, 0)  # of alpha_1 in alpha
      log_alpha += jnp.log(-jnp.expm1(share)) - np.log(-np.expm1(levels[-1] - levels[0]))
    return LogSNR(2 * log_alpha - jnp.log(-jnp.expm1(2 * log_alpha)))


def diffused(
  x: Float[Array, "*shape"], noise: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """alpha x + sigma noise: data at `level`."""
  return level.alpha(ndim=x.ndim) * x + level.sigma(ndim=x.ndim) * noise


def diffused_further(
  z: Float[Array, "*shape"], noise: Float[Array, "*shape"], level: LogSNR, further: LogSNR
) -> Float[Array, "*shape"]:
  """`z`, which is at `level`, at a level `further` that has no more signal (VDM)."""
  kept = jnp.exp(further.log_alpha(ndim=z.ndim) - level.log_alpha(ndim=z.ndim))
  change = further.over(ndim=z.ndim) - level.over(ndim=z.ndim)
  return kept * z + further.sigma(ndim=z.ndim) * jnp.sqrt(-jnp.expm1(change)) * noise


def velocity(
  x: Float[Array, "*shape"], noise: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """alpha noise - sigma x, d z / d angle in radians: the target of a v-network."""
  return level.alpha(ndim=x.ndim) * noise - level.sigma(ndim=x.ndim) * x


def data_from_velocity(
  v: Float[Array, "*shape"], z: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """The data of `z` at `level` whose velocity is `v`."""
  return level.alpha(ndim=z.ndim) * z - level.sigma(ndim=z.ndim) * v


def noise_from_velocity(
  v: Float[Array, "*shape"], z: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """The noise of `z` at `level` whose velocity is `v`."""
  return level.sigma(ndim=z.ndim) * z + level.alpha(ndim=z.ndim) * v


def noise_from_data(
  x: Float[Array, "*shape"], z: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """The noise of `z` at `level` whose data are `x`; an error of x grows by alpha / sigma."""
  return (z - level.alpha(ndim=z.ndim) * x) / level.sigma(ndim=z.ndim)


def data_from_noise(
  noise: Float[Array, "*shape"], z: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """The data of `z` at `level` whose noise is `noise`; an error of it grows by sigma / alpha.

  Not finite where there is no signal.
  """
  return (z - level.sigma(ndim=z.ndim) * noise) / level.alpha(ndim=z.ndim)


def velocity_from_data(
  x: Float[Array, "*shape"], z: Float[Array, "*shape"], level: LogSNR
) -> Float[Array, "*shape"]:
  """The velocity of `z` at `level` whose data are `x`; an error of x grows by 1 / sigma."""
  return (level.alpha(ndim=z.ndim) * z - x) / level.sigma(ndim=z.ndim)


def velocity_weight(kind: Weight, level: LogSNR) -> Float[Array, "*batch"]:
  """What a squared error of v is multiplied by to be that of `kind`, in [0, 1].

  v: 1. x: sigma^2. eps: alpha^2, so nothing is learnt where there is no signal. truncated_snr:
  the larger of the latter two, in [0.5, 1] (Salimans and Ho, 2022, section 4).

  Raises:
    ValueError: another kind.
  """
  value = level.value.astype(jnp.float32)
  match kind:
    case "v":
      return jnp.ones_like(value)
    case "x":
      return jax.nn.sigmoid(-value)
    case "eps":
      return jax.nn.sigmoid(value)
    case "truncated_snr":
      return jax.nn.sigmoid(jnp.abs(value))
    case _:
      raise ValueError(f"unknown weight {kind!r}; known are v, x, eps and truncated_snr")
