"""The encoder of T5 and its kin: T5 v1.1, mT5, ByT5, UL2 and, with positions a layer, UMT5.

Raffel et al. 2020 (T5), section 2.1; Shazeer 2020 (gated feed-forward layers), which v1.1 took up;
Xue et al. 2022 (ByT5); Tay et al. 2022 (UL2); Chung et al. 2023 (UMT5). Scores are not divided by
the root of the head size: the published weights have that in their queries.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidgen.nn.attention import MultiHeadAttention
from vidgen.nn.linear import MLP, Activation, GatedMLP
from vidgen.nn.norm import RMSNorm
from vidgen.nn.partition import constrain
from vidgen.nn.relative_positions import RelativePositions
from vidgen.nn.weights import normal, weight

STREAM = ("batch", "tokens", None)  # axes of the residual stream


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)), without any bias but that of the scores."""

  heads: int
  head_size: int
  mlp_width: int
  mlp: Literal["gated", "plain"]
  activation: Activation
  norm_epsilon: float
  buckets: int
  max_distance: int

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    bias: Float[Array, "n l l"] | None,
  ) -> tuple[Float[Array, "b l d"], Float[Array, "b l d"]]:
    """The next residual stream, twice: to go on with, and for the scan to collect.

    Without a `bias` for all layers, this one has positions of its own.
    """
    x = constrain(x, axes=STREAM)
    if bias is None:
      bias = _positions(self)(x.shape[1], x.shape[1])
    y = RMSNorm(self.norm_epsilon, name="attention_norm")(x)
    attend = MultiHeadAttention(self.heads, self.head_size, scale=1.0, name="attention")
    x = x + constrain(attend(y, y, mask=mask, bias=bias), axes=STREAM)
    y = RMSNorm(self.norm_epsilon, name="mlp_norm")(x)
    if self.mlp == "gated":
      y = GatedMLP(self.mlp_width, self.activation, name="mlp")(y)
    else:
      y = MLP(self.mlp_width, self.activation, use_bias=False, name="mlp")(y)
    x = constrain(x + y, axes=STREAM)
    return x, x


class T5Encoder(nn.Module):
  """Token ids to one vector a token; parameters are float32, matmuls run in `dtype`.

  Fields: `vocabulary` rows of the table, `width` of the stream, `heads` of `head_size` (their
  product need not be the width), `mlp_width`; `mlp` is "plain" in the first T5 and "gated" since;
  `positions`: "shared" by all layers, or "per_layer" (UMT5); `buckets` and `max_distance` of the
  relative positions.
  """

  vocabulary: int
  width: int
  layers: int
  heads: int
  head_size: int
  mlp_width: int
  mlp: Literal["gated", "plain"] = "gated"
  activation: Activation = "gelu_tanh"
  positions: Literal["shared", "per_layer"] = "shared"
  buckets: int = 32
  max_distance: int = 128
  norm_epsilon: float = 1e-6
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> dict[str, Array]:
    """Encodes `ids`, whose padding `mask` (True: a token) hides from all tokens.

    Returns "tokens" [b, l, d] float32, after the last norm, and "hidden" [layers + 1, b, l, d] in
    `dtype`: the embeddings and the stream after every layer. What padding gives means nothing.
    Under jit, what is not used is not kept.
    """
    dtype = jnp.dtype(self.dtype)
    table = weight(
      self,
      "embedding",
      shape=[self.vocabulary, self.width],
      axes=["vocab", "embed"],
      init=normal(1.0),
    )
    x = constrain(table.astype(dtype)[ids], axes=STREAM)
    length = ids.shape[1]
    bias = _positions(self)(length, length) if self.positions == "shared" else None
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,  # type: ignore[reportArgumentType]  # its annotation forgets this value
      length=self.layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    last, streams = blocks(
      heads=self.heads,
      head_size=self.head_size,
      mlp_width=self.mlp_width,
      mlp=self.mlp,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      buckets=self.buckets,
      max_distance=self.max_distance,
      name="blocks",
    )(x, mask, bias)
    out = RMSNorm(self.norm_epsilon, name="out_norm")(last)
    return {
      "tokens": constrain(out.astype(jnp.float32), axes=STREAM),
      "hidden": jnp.concatenate([x[None], streams]),
    }

  def example(self, *, batch: int = 1, length: int = 8) -> tuple[Any, Any]:
    """Abstract inputs of `__call__`."""
    shape = (batch, length)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)


def _positions(of: Block | T5Encoder) -> RelativePositions:
  return RelativePositions(
    of.heads, buckets=of.buckets, max_distance=of.max_distance, name="positions"
  )


def t5_flops(network: T5Encoder, *, length: int, batch: int = 1) -> float:
  """FLOPs of the matrix products of one encoding of `length` tokens, two a multiply-add."""
  inner = network.heads * network.head_size
  matrices = 3 if network.mlp == "gated" else 2
  maps = 4 * inner + matrices * network.mlp_width
  block = length * network.width * maps + 2 * length**2 * inner
  return 2.0 * batch * network.layers * block


def _size(vocabulary, width, layers, heads, head_size, mlp_width, **more: Any) -> T5Encoder:
  return T5Encoder(vocabulary, width, layers, heads, head_size, mlp_width, **more)


# Encoders that systems and plans name, as the config.json of the released weights has them.
T5_SIZES: Mapping[str, T5Encoder] = {
  "t5_v1_1_xl": _size(32128, 2048, 24, 32, 64, 5120),
  "t5_v1_1_xxl": _size(32128, 4096, 24, 64, 64, 10240),
  "byt5_small": _size(384, 1472, 12, 6, 64, 3584),
  "byt5_xxl": _size(384, 4672, 36, 64, 64, 12352),
  "ul2_20b": _size(32128, 4096, 32, 16, 256, 16384, activation="silu"),
  "umt5_xxl": _size(256384, 4096, 24, 64, 64, 10240, positions="per_layer"),
}
