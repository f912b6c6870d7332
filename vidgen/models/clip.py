"""CLIP: a text tower and an image tower whose embeddings agree where caption and image do.

Radford et al. 2021, section 2.4. MetaCLIP (Xu et al. 2024) and the models of LAION have the same
networks; what differs from one release to another is the activation (OpenAI's is the quick GELU,
LAION's the exact one, MetaCLIP's either) and where the text embedding is read.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vidgen.models.vit import PatchTokens
from vidgen.nn.linear import Activation, Linear
from vidgen.nn.norm import LayerNorm
from vidgen.nn.partition import constrain
from vidgen.nn.transformer import STREAM, Transformer, causal_bias, transformer_flops
from vidgen.nn.weights import Initializer, normal, weight


class CLIPText(nn.Module):
  """The text tower: causal, with learnt positions; parameters float32, matmuls in `dtype`.

  Fields: `max_length` rows of the position table; `projection` is the width of the embedding, None
  for one that is not projected; `end_token`: the embedding is read at its first occurrence, or,
  None, at the largest id of the text, which is the end in OpenAI's vocabulary.
  """

  vocabulary: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  projection: int | None
  activation: Activation = "quick_gelu"
  max_length: int = 77
  end_token: int | None = None
  norm_epsilon: float = 1e-5
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> dict[str, Array]:
    """Encodes `ids`; `mask` (True: a token) hides padding, as far as being causal does not.

    Returns "embedding" [b, p], not of unit length, "tokens" [b, l, d] after the last norm, both
    float32, and "hidden" [layers + 1, b, l, d] in `dtype`: the embeddings and the stream after
    every layer. What padding gives means nothing. Under jit, what is not used is not kept.

    Raises:
      ValueError: the text is longer than the position table.
    """
    length, dtype = ids.shape[1], jnp.dtype(self.dtype)
    if length > self.max_length:
      raise ValueError(f"{length} tokens, but the text tower has {self.max_length} positions")
    table = self._table("embedding", self.vocabulary, "vocab", 0.02)
    positions = self._table("positions", self.max_length, None, 0.01)[:length]
    x = constrain(table.astype(dtype)[ids] + positions.astype(dtype), axes=STREAM)
    blocks = Transformer(
      self.layers,
      self.heads,
      self.mlp_width,
      self.activation,
      self.norm_epsilon,
      name="transformer",
    )
    found = blocks(x, mask=mask, bias=causal_bias(length))
    tokens = LayerNorm(self.norm_epsilon, name="out_norm")(found["tokens"])
    tokens = constrain(tokens.astype(jnp.float32), axes=STREAM)
    end = jnp.argmax(ids if self.end_token is None else ids == self.end_token, axis=1)
    pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
    return {
      "embedding": _projected(pooled, self.projection),
      "tokens": tokens,
      "hidden": found["hidden"],
    }

  def _table(self, name: str, rows: int, axis: str | None, scale: float) -> jax.Array:
    shape = [rows, self.width]
    return weight(self, name, shape=shape, axes=[axis, "embed"], init=normal(scale))

  def example(self, *, batch: int = 1, length: int | None = None) -> tuple[Any, Any]:
    """Abstract inputs of `__call__`."""
    shape = (batch, length or self.max_length)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_)


class CLIPVision(nn.Module):
  """The image tower, with a norm before its blocks; parameters float32, matmuls in `dtype`.

  Fields as of `models.vit.ViT`; `projection` as of `CLIPText`.
  """

  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  projection: int | None
  activation: Activation = "quick_gelu"
  norm_epsilon: float = 1e-5
  dtype: str = "float32"

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Array]:
    """Features of normalised `images`.

    Returns "embedding" [b, p] of the normed class token, not of unit length, "tokens" [b, 1 + s, d]
    after the last layer, without a norm, both float32, and "hidden" [layers + 1, b, 1 + s, d] in
    `dtype`: the input of the first layer and the stream after each. Under jit, what is not used is
    not kept.
    """
    x = PatchTokens(self.image_size, self.patch, self.width, use_bias=False, name="patch_tokens")(
      images.astype(self.dtype)
    )
    x = LayerNorm(self.norm_epsilon, name="in_norm")(x)
    found = Transformer(
      self.layers,
      self.heads,
      self.mlp_width,
      self.activation,
      self.norm_epsilon,
      name="transformer",
    )(x)
    tokens = found["tokens"].astype(jnp.float32)
    pooled = LayerNorm(self.norm_epsilon, name="out_norm")(tokens[:, 0])
    return {
      "embedding": _projected(pooled, self.projection),
      "tokens": tokens,
      "hidden": found["hidden"],
    }

  def example(self, *, batch: int = 1) -> tuple[Any]:
    """Abstract inputs of `__call__`."""
    return (jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), jnp.float32),)


def _projected(pooled: jax.Array, width: int | None) -> jax.Array:
  if width is None:
    return pooled
  return Linear(width, axes=("embed", None), use_bias=False, name="projection")(pooled)


class CLIP(nn.Module):
  """Both towers and the temperature of their agreement."""

  text: CLIPText
  vision: CLIPVision

  @nn.compact
  def __call__(
    self,
    images: Float[Array, "b h w 3"],
    ids: Int[Array, "c l"],
    mask: Bool[Array, "c l"],
  ) -> dict[str, Array]:
    """Embeddings of unit length, "image_embedding" [b, p] and "text_embedding" [c, p], and
    "logits" [b, c], their cosines times the temperature."""
    image = _unit(self.vision(images)["embedding"])
    text = _unit(self.text(ids, mask)["embedding"])
    scale = weight(self, "logit_scale", shape=[1], axes=[None], init=_TEMPERATURE)
    logits = jnp.exp(scale) * jnp.einsum("bp,cp->bc", image, text)
    return {"image_embedding": image, "text_embedding": text, "logits": logits}

  def example(self, *, batch: int = 1) -> tuple[Any, Any, Any]:
    """Abstract inputs of `__call__`."""
    return (*self.vision.example(batch=batch), *self.text.example(batch=batch))


_TEMPERATURE: Initializer = nn.initializers.constant(2.6592)  # log(1 / 0.07)


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def extend_text_positions(
  table: Float[Array, "m d"], *, length: int, keep: int = 20
) -> Float[Array, "{length} d"]:
  """A position table for `length` tokens from one for fewer, to train on from.

  Movie Gen's long-prompt MetaCLIP reads 256 tokens instead of 77; its report trains the new table,
  with the towers frozen, and does not say what it starts from. Here it is the rule of Long-CLIP
  (Zhang et al. 2024, section 3.1): the first `keep` rows, which short captions have trained well,
  stay; the others are stretched evenly by linear interpolation, and past the last row by
  extrapolation of the last two.

  Raises:
    ValueError: the table would shrink, or fewer than two rows are left to stretch.
  """
  rows = table.shape[0]
  if length < rows or not 0 <= keep <= rows - 2:
    raise ValueError(f"a table of {rows} positions, {keep} kept, cannot be stretched to {length}")
  at = keep + np.arange(length - keep) * (rows - keep) / (length - keep)
  low = np.minimum(at.astype(np.int32), rows - 2)
  part = jnp.asarray(at - low, table.dtype)[:, None]
  stretched = table[low] * (1 - part) + table[low + 1] * part
  return jnp.concatenate([table[:keep], stretched])


def clip_text_flops(network: CLIPText, *, length: int, batch: int = 1) -> float:
  """FLOPs of the matrix products of one call, two a multiply-add."""
  head = network.width * (network.projection or 0)
  return _blocks(network, tokens=length, batch=batch) + 2.0 * batch * head


def clip_vision_flops(network: CLIPVision, *, batch: int = 1) -> float:
  """As `clip_text_flops`."""
  patches = (network.image_size // network.patch) ** 2
  ends = patches * 3 * network.patch**2 + (network.projection or 0)
  return _blocks(network, tokens=patches + 1, batch=batch) + 2.0 * batch * ends * network.width


def _blocks(network: CLIPText | CLIPVision, *, tokens: int, batch: int) -> float:
  return transformer_flops(
    layers=network.layers,
    width=network.width,
    mlp_width=network.mlp_width,
    tokens=tokens,
    batch=batch,
  )
