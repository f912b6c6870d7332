"""Vision transformers with a class token: DINO's, and what CLIP's image tower shares with it.

Dosovitskiy et al. 2021 (ViT), section 3.1; Caron et al. 2021 (DINO), whose feature is the class
token after the last norm.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.nn.linear import Activation, Linear
from vidgen.nn.norm import LayerNorm
from vidgen.nn.partition import constrain
from vidgen.nn.patches import patchify
from vidgen.nn.transformer import STREAM, Transformer, transformer_flops
from vidgen.nn.weights import normal, weight


class PatchTokens(nn.Module):
  """A class token and one token for each patch, rows first, all with a learnt position."""

  image_size: int
  patch: int
  width: int
  use_bias: bool

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b s d"]:
    """The tokens, in the dtype of `images`.

    Raises:
      ValueError: the images are not squares of `image_size`.
    """
    b, dtype = images.shape[0], images.dtype
    if images.shape[1:3] != (self.image_size, self.image_size):
      raise ValueError(f"images of {images.shape[1:3]}, not {self.image_size} squared")
    values = patchify(images[:, None], patch=(1, self.patch, self.patch))
    linear = Linear(self.width, axes=(None, "embed"), use_bias=self.use_bias, name="patch")
    first = weight(self, "class_token", shape=[self.width], axes=["embed"], init=normal(0.02))
    first = jnp.broadcast_to(first.astype(dtype), (b, 1, self.width))
    x = jnp.concatenate([first, linear(values)], axis=1)
    shape = [x.shape[1], self.width]
    table = weight(self, "positions", shape=shape, axes=[None, "embed"], init=normal(0.02))
    return constrain(x + table.astype(dtype), axes=STREAM)


class ViT(nn.Module):
  """Images to features; parameters are float32, matmuls run in `dtype`.

  Fields: images of `image_size` squared in patches of `patch` squared; the stream's `width`,
  `layers` of `heads`; `norm_epsilon` is 1e-12 in the released config and 1e-6 in DINO's own code.
  """

  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp_width: int
  activation: Activation = "gelu"
  norm_epsilon: float = 1e-12
  dtype: str = "float32"

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> dict[str, Array]:
    """Features of normalised `images`.

    Returns "embedding" [b, d], the class token after the last norm, "tokens" [b, 1 + s, d], all
    tokens after it, both float32, and "hidden" [layers + 1, b, 1 + s, d] in `dtype`: the input of
    the first layer and the stream after each. Under jit, what is not used is not kept.
    """
    x = PatchTokens(self.image_size, self.patch, self.width, use_bias=True, name="patch_tokens")(
      images.astype(self.dtype)
    )
    found = Transformer(
      self.layers,
      self.heads,
      self.mlp_width,
      self.activation,
      self.norm_epsilon,
      name="transformer",
    )(x)
    tokens = LayerNorm(self.norm_epsilon, name="out_norm")(found["tokens"]).astype(jnp.float32)
    return {"embedding": tokens[:, 0], "tokens": tokens, "hidden": found["hidden"]}

  def example(self, *, batch: int = 1) -> tuple[Any]:
    """Abstract inputs of `__call__`."""
    return (jax.ShapeDtypeStruct((batch, self.image_size, self.image_size, 3), jnp.float32),)


def vit_flops(network: ViT, *, batch: int = 1) -> float:
  """FLOPs of the matrix products of one call, two a multiply-add."""
  patches = (network.image_size // network.patch) ** 2
  blocks = transformer_flops(
    layers=network.layers,
    width=network.width,
    mlp_width=network.mlp_width,
    tokens=patches + 1,
    batch=batch,
  )
  return blocks + 2.0 * batch * patches * 3 * network.patch**2 * network.width
