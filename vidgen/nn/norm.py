"""Normalisation over the width; statistics are float32 whatever the input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.nn.weights import ones, weight, zeros


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + epsilon) * scale, over the last axis (Movie Gen: epsilon 1e-5)."""

  epsilon: float = 1e-5
  axis_name: str | None = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Normalises; the result has the dtype of `x`."""
    scale = weight(self, "scale", shape=x.shape[-1:], axes=[self.axis_name], init=ones)
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
    return (y * scale).astype(x.dtype)


class LayerNorm(nn.Module):
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis."""

  epsilon: float = 1e-5
  axis_name: str | None = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Normalises; the result has the dtype of `x`."""
    scale = weight(self, "scale", shape=x.shape[-1:], axes=[self.axis_name], init=ones)
    bias = weight(self, "bias", shape=x.shape[-1:], axes=[self.axis_name], init=zeros)
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
    return (y * scale + bias).astype(x.dtype)
