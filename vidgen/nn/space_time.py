"""Layers that mix the frames of a clip, or the positions of a frame, in rows that may hold several
clips and images (VDM, section 4; Imagen Video, section 2.6).

`segments` [b t] says what is together: frames of one number, side by side, are one clip, and a
frame that is alone in its number is an image. Which they are is data, so that clips, images and
both in a row go through one compiled program, and none sees another.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vidgen.nn.attention import attention
from vidgen.nn.linear import Linear
from vidgen.nn.norm import GroupNorm, RMSNorm
from vidgen.nn.partition import constrain
from vidgen.nn.relative_positions import RelativePositions, relative_buckets
from vidgen.nn.remat import checkpoint_name
from vidgen.nn.weights import Initializer, normal, weight, zeros

FRAMES = ("batch", "frames", "rows", None, None)  # axes of a video in a network
STREAM = ("batch", "tokens", None)  # axes of tokens
KEYS = ("batch", None, "heads", None)  # and of keys that every device has
# Every distance up to 15 frames has a number of its own, longer ones share up to 128.
BUCKETS, FARTHEST = 64, 128
# Of fresh scores by distance, so that each head begins with a few distances of its own, where near
# zero all begin as a mean over time; whether it helps was not measured.
SPREAD = 2.0


def normalised(
  x: Float[Array, "b t h w c"], *, groups: int, name: str
) -> Float[Array, "b t h w c"]:
  """`x` with statistics of one frame: of groups of channels, or, for 0, of each position.

  Statistics over space make a crop differ from the whole; those of a position do not.
  """
  if not groups:
    return RMSNorm(axis_name=None, name=name)(x)
  b, t, *rest = x.shape
  return GroupNorm(groups, name=name)(x.reshape(b * t, *rest)).reshape(x.shape)


def of_frames(x: Shaped[Array, "b k *rest"], segments: Int[Array, "b t"]) -> Array:
  """What each frame has of the captions: [b t *rest], or [b 1 *rest] of a row's only caption.

  Frame f has caption number `segments[:, f]`.
  """
  if x.shape[1] == 1:
    return x
  index = segments.reshape(*segments.shape, *(1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


class FrameAttention(nn.Module):
  """x + attention of each frame's positions, behind a norm.

  over "self": to one another and to the frame's text, whose keys and values are further ones
  (Imagen, section 2.4 and appendix D); "cross": to the text alone, where absent text adds nothing.
  `init` is that of the last projection.
  """

  heads: int
  groups: int
  over: Literal["self", "cross"] = "self"
  init: Initializer | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    text: Float[Array, "b k l d"],
    text_mask: Bool[Array, "b k l"],
    segments: Int[Array, "b t"],
  ) -> Float[Array, "b t h w c"]:
    """Computes in x's dtype."""
    b, t, h, w, c = x.shape

    def projected(name: str, y: jax.Array) -> jax.Array:
      y = Linear(c, axes=("embed", "embed_out"), use_bias=False, name=name)(y)
      return y.reshape(*y.shape[:-1], self.heads, c // self.heads)

    def each_frames(y: jax.Array) -> jax.Array:
      y = of_frames(y, segments)
      return jnp.broadcast_to(y, (b, t, *y.shape[2:])).reshape(b * t, *y.shape[2:])

    y = normalised(x, groups=self.groups, name="norm").reshape(b * t, h * w, c)
    y = constrain(y, axes=STREAM)
    q = projected("query", y)
    # of every caption once, however many frames have it
    k, v = (each_frames(projected(f"text_{n}", text)) for n in ("key", "value"))
    mask = each_frames(text_mask)
    if self.over == "self":
      # Of a frame with its text every device has all keys: they are few, and as tokens split over
      # devices their number seldom divides, which XLA has been seen (jax 0.10.2) to fail at.
      k, v = (
        constrain(jnp.concatenate([projected(n, y), of_text], axis=1), axes=KEYS)
        for n, of_text in (("key", k), ("value", v))
      )
      mask = jnp.concatenate([jnp.ones((b * t, h * w), bool), mask], axis=1)
    y = attention(q, k, v, mask=mask).reshape(b, t, h, w, c)
    out = Linear(c, axes=("embed_out", "embed"), use_bias=False, init=self.init, name="out")
    return x + checkpoint_name(out(y), f"{self.over}_attention")


class ClipAttention(nn.Module):
  """x + attention of each position to its own at the other frames of the clip, behind a norm.

  Each distance between frames has a learned number a head, added to the scores, and a learned
  vector, added to the values, as relative positions have in both places (Shaw et al., 2018): from
  scores alone, whose weights add up to 1, the network hardly learns which way time goes. Nothing
  knows a frame's place in the row. Fresh, the layer adds nothing; of an image, it is a linear map.
  """

  heads: int
  groups: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t h w c"], segments: Int[Array, "b t"]
  ) -> Float[Array, "b t h w c"]:
    """Computes in x's dtype."""
    b, t, h, w, c = x.shape
    y = normalised(x, groups=self.groups, name="norm")
    y = constrain(y.transpose(0, 2, 3, 1, 4).reshape(b * h * w, t, c), axes=STREAM)
    q, k, v = (
      Linear(c, axes=("embed", "embed_out"), use_bias=False, name=n)(y).reshape(
        b * h * w, t, self.heads, c // self.heads
      )
      for n in ("query", "key", "value")
    )
    positions = RelativePositions(self.heads, BUCKETS, FARTHEST, normal(SPREAD), name="positions")
    bias = positions(t, t)
    ids = jnp.repeat(segments, h * w, axis=0)
    # Values with the number of their frame behind them: what comes out has the weights there.
    numbers = jnp.broadcast_to(jnp.eye(t, dtype=v.dtype)[:, None], (*v.shape[:3], t))
    y = attention(q, k, jnp.concatenate([v, numbers], axis=-1), ids=(ids, ids), bias=bias)
    y, weights = jnp.split(y, [v.shape[-1]], axis=-1)
    y = y + jnp.einsum("bsnl,slnk->bsnk", weights, self._vectors(t, c).astype(y.dtype))
    y = y.reshape(b, h, w, t, c).transpose(0, 3, 1, 2, 4)
    out = Linear(c, axes=("embed_out", "embed"), use_bias=False, init=zeros, name="out")
    return x + checkpoint_name(out(y), "self_attention")

  def _vectors(self, t: int, c: int) -> Float[Array, "t t n k"]:
    """What is added to the value of each frame for each that attends to it; nothing for its own."""
    shape, axes = [BUCKETS, c], [None, "embed_out"]
    table = weight(self, "value_table", shape=shape, axes=axes, init=normal(1.0))
    index = relative_buckets(t, t, buckets=BUCKETS, max_distance=FARTHEST)
    vectors = jnp.where(index[..., None] == 0, 0.0, table[index])
    return vectors.reshape(t, t, self.heads, c // self.heads)


class ClipConvolution(nn.Module):
  """x + m * convolution(silu(norm(x))): three taps over the frames of a clip.

  Beyond the clip's ends are zeros. m is 0 for images, which pass it by. Fresh, it adds nothing.
  """

  groups: int

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t h w c"], segments: Int[Array, "b t"]
  ) -> Float[Array, "b t h w c"]:
    """Computes in x's dtype."""
    c = x.shape[-1]
    kernel = weight(self, "kernel", shape=[3, c, c], axes=[None, "embed", "embed_out"], init=zeros)
    bias = weight(self, "bias", shape=[c], axes=["embed_out"], init=zeros)
    y = jax.nn.silu(normalised(x, groups=self.groups, name="norm"))
    same = segments[:, 1:] == segments[:, :-1]
    before, after = jnp.pad(same, ((0, 0), (1, 0))), jnp.pad(same, ((0, 0), (0, 1)))

    def beside(y: jax.Array, seen: jax.Array, pad: tuple[int, int]) -> jax.Array:
      y = jnp.pad(y, ((0, 0), pad, (0, 0), (0, 0), (0, 0)))
      return jnp.where(seen[..., None, None, None], y, jnp.zeros((), y.dtype))

    # All taps side by side, for one matrix product: the quickest form on a CPU.
    taps = [beside(y[:, :-1], before, (1, 0)), y, beside(y[:, 1:], after, (0, 1))]
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    flat = kernel.reshape(3 * c, c).astype(x.dtype)
    y = jnp.matmul(jnp.concatenate(taps, axis=-1), flat, precision=precision)
    y = y + bias.astype(x.dtype)
    return x + jnp.where((before | after)[..., None, None, None], y, jnp.zeros((), y.dtype))
