"""A stack of pre-norm transformer blocks, as CLIP's towers and vision transformers have it."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vidgen.nn.attention import MultiHeadAttention
from vidgen.nn.linear import MLP, Activation
from vidgen.nn.norm import LayerNorm
from vidgen.nn.partition import constrain

STREAM = ("batch", "tokens", None)  # axes of the residual stream


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); all maps have biases."""

  heads: int
  mlp_width: int
  activation: Activation
  norm_epsilon: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s d"],
    mask: Bool[Array, "b s"] | None,
    bias: Float[Array, "_ s s"] | None,
  ) -> tuple[Float[Array, "b s d"], Float[Array, "b s d"]]:
    """The next residual stream, twice: to go on with, and for the scan to collect."""
    x = constrain(x, axes=STREAM)
    attend = MultiHeadAttention(
      self.heads, x.shape[-1] // self.heads, use_bias=True, name="attention"
    )
    y = LayerNorm(self.norm_epsilon, name="attention_norm")(x)
    x = x + constrain(attend(y, y, mask=mask, bias=bias), axes=STREAM)
    y = LayerNorm(self.norm_epsilon, name="mlp_norm")(x)
    y = MLP(self.mlp_width, self.activation, name="mlp")(y)
    x = constrain(x + y, axes=STREAM)
    return x, x


class Transformer(nn.Module):
  """`layers` blocks by scan; parameters are stacked on a leading axis "layers".

  Raises:
    ValueError: the width is no multiple of the heads.
  """

  layers: int
  heads: int
  mlp_width: int
  activation: Activation = "gelu"
  norm_epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s d"],
    *,
    mask: Bool[Array, "b s"] | None = None,
    bias: Float[Array, "_ s s"] | None = None,
  ) -> dict[str, Array]:
    """The stream after the last block, "tokens" [b, s, d]; "hidden" [layers + 1, b, s, d] is
    `x` and the stream after every block. Under jit, what is not used is not kept."""
    if x.shape[-1] % self.heads:
      raise ValueError(f"width {x.shape[-1]} does not divide into {self.heads} heads")
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,  # type: ignore[reportArgumentType]  # its annotation forgets this value
      length=self.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    last, streams = blocks(
      self.heads, self.mlp_width, self.activation, self.norm_epsilon, name="blocks"
    )(x, mask, bias)
    return {"tokens": last, "hidden": jnp.concatenate([x[None], streams])}


def causal_bias(length: int) -> Float[Array, "1 s s"]:
  """A bias that keeps a token from attending to later ones."""
  later = jnp.triu(jnp.ones((length, length), bool), k=1)
  return jnp.where(later, jnp.finfo(jnp.float32).min, 0.0)[None]


def transformer_flops(
  *, layers: int, width: int, mlp_width: int, tokens: int, batch: int = 1
) -> float:
  """FLOPs of the matrix products of the blocks, two a multiply-add."""
  block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp_width
  return 2.0 * batch * layers * block
