"""Linear maps over the width, and the gated feed-forward layer made of them."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vidgen.nn.partition import constrain
from vidgen.nn.weights import Initializer, fan_in, weight, zeros


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


class SwiGLU(nn.Module):
  """down(silu(gate(x)) * up(x)), without biases."""

  hidden: int

  @nn.compact
  def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Applies the layer in x's dtype."""
    gate = Linear(self.hidden, axes=("embed", "mlp"), use_bias=False, name="gate")(x)
    up = Linear(self.hidden, axes=("embed", "mlp"), use_bias=False, name="up")(x)
    down = Linear(x.shape[-1], axes=("mlp", "embed"), use_bias=False, name="down")
    hidden = jax.nn.silu(gate) * up
    return down(constrain(hidden, axes=("batch", "sequence", "mlp")) if x.ndim == 3 else hidden)
