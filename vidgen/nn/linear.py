"""Linear maps over the width, and the feed-forward layers made of them."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vidgen.nn.partition import constrain
from vidgen.nn.weights import Initializer, fan_in, weight, zeros

Activation = Literal["relu", "silu", "gelu", "gelu_tanh", "quick_gelu"]

# Two forms of GELU differ by up to 5e-4, and the quick one by 2e-2: weights go with their own.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016, section 2
}


class Linear(nn.Module):
  """x @ kernel (+ bias); `axes` names the input and the output width. Computes in x's dtype."""

  features: int
  axes: tuple[str | None, str | None] = ("embed", None)
  use_bias: bool = True
  init: Initializer | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
    """Maps the last axis to `features`."""
    kernel = weight(
      self,
      "kernel",
      shape=[x.shape[-1], self.features],
      axes=self.axes,
      init=self.init or fan_in(),
    )
    y = x @ kernel.astype(x.dtype)
    if self.use_bias:
      bias = weight(self, "bias", shape=[self.features], axes=self.axes[1:], init=zeros)
      y = y + bias.astype(x.dtype)
    return y


class MLP(nn.Module):
  """down(activation(up(x)))."""

  hidden: int
  activation: Activation = "gelu"
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Applies the layer in x's dtype."""
    up = Linear(self.hidden, axes=("embed", "mlp"), use_bias=self.use_bias, name="up")
    down = Linear(x.shape[-1], axes=("mlp", "embed"), use_bias=self.use_bias, name="down")
    return down(_split(ACTIVATIONS[self.activation](up(x))))


class GatedMLP(nn.Module):
  """down(activation(gate(x)) * up(x)), without biases."""

  hidden: int
  activation: Activation = "silu"

  @nn.compact
  def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Applies the layer in x's dtype."""
    gate = Linear(self.hidden, axes=("embed", "mlp"), use_bias=False, name="gate")(x)
    up = Linear(self.hidden, axes=("embed", "mlp"), use_bias=False, name="up")(x)
    down = Linear(x.shape[-1], axes=("mlp", "embed"), use_bias=False, name="down")
    return down(_split(ACTIVATIONS[self.activation](gate) * up))


def _split(hidden: jax.Array) -> jax.Array:
  """The hidden layer of tokens, laid out by the rules in force."""
  return constrain(hidden, axes=("batch", "sequence", "mlp")) if hidden.ndim == 3 else hidden
