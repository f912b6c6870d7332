"""The video U-Net of the seven models of Imagen Video (Imagen Video, section 2.6).

Every frame goes through an image U-Net: the Efficient U-Net of Imagen (appendix B.1) where the
outermost level has a stride, one in the manner of ADM where it has none. After every residual block
(and its attention) one layer mixes the frames of a clip: attention in the base model, a convolution
in the others. The paper gives neither widths nor depths.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidgen.nn.attention import MultiHeadAttention
from vidgen.nn.convolution import Convolution
from vidgen.nn.embeddings import timestep_embedding
from vidgen.nn.linear import Linear
from vidgen.nn.norm import LayerNorm
from vidgen.nn.partition import constrain
from vidgen.nn.patches import folded, unfolded
from vidgen.nn.remat import POLICIES, RematPolicy, rematerialised
from vidgen.nn.space_time import (
  FRAMES,
  ClipAttention,
  ClipConvolution,
  FrameAttention,
  normalised,
  of_frames,
)
from vidgen.nn.weights import Initializer, normal, weight, zeros

Mixing = Literal["attention", "convolution", "none"]  # of the frames of a clip
Attending = Literal["none", "self", "cross"]  # of the positions of a frame
EMBEDDING = ("batch", "frames", None)  # axes of the embedding of every frame
SINUSOIDS = 256  # of the embedding of a noise level, and of a guidance scale
GUIDANCE_SCALE = 30.0  # radians of the fastest sinusoid for a step of 1 of the guidance scale
SKIP = 2**-0.5  # what a skip is multiplied by (Imagen, appendix B.1)


@dataclasses.dataclass(frozen=True)
class Level:
  """One resolution of the network, on its way down and on its way up.

  channels, blocks: of residual blocks on each of the two ways, and their width.
  stride: of the convolution before the way down, and of what undoes it after the way up; 1: none.
  attention: "self" of a frame's positions to one another and to the text, "cross" to the text.
  attend: after "each" of the blocks, or the "last" of each way.
  """

  channels: int
  blocks: int
  stride: int = 1
  attention: Attending = "none"
  attend: Literal["each", "last"] = "each"

  def attentions(self) -> Sequence[Attending]:
    """The attention after every block of one way."""
    before: Attending = self.attention if self.attend == "each" else "none"
    return (*(before for _ in range(self.blocks - 1)), self.attention)


def check_widths(levels: Sequence[Level], *, groups: int, head_size: int, temporal: Mixing) -> None:
  """Raises ValueError where groups or heads do not divide a level's channels."""
  for level in levels:
    if groups and level.channels % groups:
      raise ValueError(f"{groups} groups do not divide {level.channels} channels")
    attends = level.attention != "none" or temporal == "attention"
    if attends and level.channels % head_size:
      raise ValueError(f"heads of {head_size} do not divide {level.channels} channels")


class ResBlock(nn.Module):
  """Two norms, SiLUs and convolutions of frames, around which the input goes by a shortcut.

  The embedding scales and shifts what the second norm gives. `init` is of the last convolution.
  """

  features: int
  groups: int
  init: Initializer | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t h w c"], embedding: Float[Array, "b t e"]
  ) -> Float[Array, "b t h w _"]:
    """The frames with `features` channels, in x's dtype."""
    f = self.features
    y = jax.nn.silu(normalised(x, groups=self.groups, name="norm1"))
    y = each_frame(convolution(f, name="conv1"), y)
    y = normalised(constrain(y, axes=FRAMES), groups=self.groups, name="norm2")
    linear = Linear(2 * f, axes=("embed", "embed_out"), name="modulation")
    vectors = constrain(linear(embedding), axes=EMBEDDING)
    scale, shift = jnp.split(vectors[:, :, None, None], 2, axis=-1)
    y = jax.nn.silu((y.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype))
    y = constrain(each_frame(convolution(f, init=self.init, name="conv2"), y), axes=FRAMES)
    if x.shape[-1] != f:
      x = constrain(Linear(f, axes=("embed", "embed_out"), name="shortcut")(x), axes=FRAMES)
    return x + y


def convolution(features: int, *, size: int = 3, **fields: Any) -> Convolution:
  """A square convolution of the network, its kernel whole on every device that uses it."""
  axes = fields.pop("axes", ("embed", "embed_out"))
  return Convolution(features, (size, size), axes=axes, gather="kernel", **fields)


def each_frame(layer: Any, x: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ _"]:
  """`layer`, of [b h w c], on every frame by itself."""
  b, t = x.shape[:2]
  y = layer(x.reshape(b * t, *x.shape[2:]))
  return y.reshape(b, t, *y.shape[1:])


class Unit(nn.Module):
  """A residual block, attention in each frame, and what mixes the frames of a clip."""

  features: int
  heads: int
  groups: int
  attention: Attending
  temporal: Mixing
  init: Initializer | None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t h w c"],
    embedding: Float[Array, "b t e"],
    text: Float[Array, "b k l d"],
    text_mask: Bool[Array, "b k l"],
    segments: Int[Array, "b t"],
  ) -> tuple[Float[Array, "b t h w _"], None]:
    """The next frames (and None, for the scan)."""
    x = constrain(x, axes=FRAMES)
    x = ResBlock(self.features, self.groups, self.init, name="residual")(x, embedding)
    if self.attention != "none":
      x = constrain(x, axes=FRAMES)
      attend = FrameAttention(self.heads, self.groups, self.attention, self.init, name="attention")
      x = attend(x, text, text_mask, segments)
    x = constrain(x, axes=FRAMES)
    if self.temporal == "attention":
      x = ClipAttention(self.heads, self.groups, name="temporal")(x, segments)
    elif self.temporal == "convolution":
      x = ClipConvolution(self.groups, name="temporal")(x, segments)
    return constrain(x, axes=FRAMES), None


class LevelEmbedding(nn.Module):
  """Sinusoids of a noise level in [0, 1], and two linear maps."""

  width: int

  @nn.compact
  def __call__(self, level: Float[Array, "b t"]) -> Float[Array, "b t e"]:
    """Float32: it is small, and it scales every activation."""
    y = timestep_embedding(level.reshape(-1), width=SINUSOIDS)
    y = Linear(self.width, axes=(None, "embed"), name="in")(y).reshape(*level.shape, self.width)
    y = jax.nn.silu(constrain(y, axes=EMBEDDING))
    return constrain(Linear(self.width, axes=("embed", "embed_out"), name="out")(y), axes=EMBEDDING)


class VideoUNet(nn.Module):
  """Predicts a video from a noisy one, its noise level and text, and maybe a coarser video.

  `levels`, outermost first. On the way down a level begins with its strided convolution; on the
  way up it ends with nearest-neighbour upsampling and a 3 x 3 convolution. Each but the innermost
  is given, on the way up, its result of the way down times 1/sqrt(2) beside what comes from within.
  `temporal` is what mixes the frames of a clip; with "none" this is an image network.

  Noise levels, and with `guidance` the guidance scale, become a vector of `embedding` values (None:
  four times the outermost channels), to which the text adds what a learned query attends to.
  Nothing knows where in the picture or the row it is; with `places` a frame's number in its own
  clip, from 0, enters the embedding. `low_channels` are of a video on the same
  grid to generate from. `stem` is the width of the first convolution (None: the outermost
  channels). `patch` x `patch` pixels are the channels of one position.

  `groups` of norms, whose statistics are of one frame; for 0 they are of one position, so that with
  no "self" attention a crop is treated as the whole is (see `receptive`). `residual` "zero" starts
  every block as the identity. Parameters are float32; convolutions and attention run in `dtype`,
  norms and embeddings in float32. With `scan`, blocks of a level that are alike are one loop, whose
  parameters are stacked: for the compiler's sake.

  Not in the paper: all widths and depths, head sizes, patches, norms of a position, where in
  a block the embedding enters (Imagen's base model scales and shifts, the way of ADM), `places`,
  and the distance over which temporal attention tells frames apart.
  """

  levels: Sequence[Level]
  text_width: int
  temporal: Mixing = "convolution"
  low_channels: int = 0
  guidance: bool = False
  places: bool = False
  channels: int = 3
  stem: int | None = None
  embedding: int | None = None
  head_size: int = 64
  groups: int = 32
  patch: int = 1
  residual: Literal["zero", "plain"] = "zero"
  dtype: str = "float32"
  remat: RematPolicy = "none"
  scan: bool = False

  @property
  def stride(self) -> int:
    """Pixels of a side that become one innermost position's."""
    total = self.patch
    for level in self.levels:
      total *= level.stride
    return total

  @property
  def stem_width(self) -> int:
    """Channels after the first convolution."""
    return self.levels[0].channels if self.stem is None else self.stem

  @property
  def embedding_width(self) -> int:
    """Values of the embedding of noise level and text."""
    return 4 * self.levels[0].channels if self.embedding is None else self.embedding

  @nn.compact
  def __call__(
    self,
    z: Float[Array, "b t h w c"],
    level: Float[Array, "b t"],
    *,
    text: Float[Array, "b k l d"],
    text_mask: Bool[Array, "b k l"],
    segments: Int[Array, "b t"] | None = None,
    low: Float[Array, "b t h w _"] | None = None,
    low_level: Float[Array, "b t"] | None = None,
    guidance: Float[Array, " b"] | None = None,
  ) -> Float[Array, "b t h w c"]:
    """The prediction, float32; a fresh network's is zero.

    `level` is of `z`, `low_level` of `low`: 0 data, 1 noise. Frames of one number in `segments`
    are one clip and stand side by side, a frame alone in its number is an image; None: each row is
    one clip. A row's only caption (k = 1) is every frame's; of several, frame f has number
    `segments[:, f]`. Text that no mask admits contributes nothing.

    Raises:
      ValueError: sides that are no multiples of `stride`; channels that groups or heads do not
        divide; a condition that the fields do not announce, or none where they do; several
        captions, but no segments.
    """
    self._check(z, text, segments, low, low_level, guidance)
    dtype = jnp.dtype(self.dtype)
    if segments is None:
      segments = jnp.zeros(level.shape, jnp.int32)
    words = LayerNorm(axis_name=None, name="text_norm")(text).astype(dtype)
    words = constrain(words, axes=("batch", None, None, None))
    embedding = self._embedding(level, words, text_mask, segments, low_level, guidance)
    given = (embedding, words, text_mask, segments)

    x = z if low is None else jnp.concatenate([z, low], axis=-1)
    x = constrain(folded(x.astype(dtype), self.patch), axes=FRAMES)
    x = constrain(each_frame(convolution(self.stem_width, name="conv_in"), x), axes=FRAMES)
    skips, last = [], len(self.levels) - 1
    for i, here in enumerate(self.levels):
      if here.stride > 1:
        x = each_frame(self._strided(here, name=f"down_{i}_stride"), x)
      x = self._units(here, x, given, name=f"down_{i}")
      skips.append(x)
    for i, here in reversed(list(enumerate(self.levels))):
      if i < last:
        x = jnp.concatenate([x, skips[i] * jnp.asarray(SKIP, dtype)], axis=-1)
      x = self._units(here, x, given, name=f"up_{i}")
      if here.stride > 1:
        outer = self.levels[i - 1].channels if i else self.stem_width
        conv = convolution(outer, name=f"up_{i}_stride")
        x = constrain(each_frame(conv, enlarged(x, times=here.stride)), axes=FRAMES)
    x = jax.nn.silu(constrain(normalised(x, groups=self.groups, name="norm_out"), axes=FRAMES))
    values = self.channels * self.patch**2
    out = convolution(values, axes=("embed", None), init=zeros, name="conv_out")
    x = constrain(each_frame(out, x), axes=FRAMES)
    return unfolded(x.astype(jnp.float32), self.patch)

  def _check(self, z, text, segments, low, low_level, guidance) -> None:
    if any(side % self.stride for side in z.shape[2:4]):
      raise ValueError(f"sides {z.shape[2:4]} are no multiples of {self.stride}")
    if z.shape[-1] != self.channels or text.shape[-1] != self.text_width:
      raise ValueError(f"this network takes {self.channels} channels, text of {self.text_width}")
    if (0 if low is None else low.shape[-1]) != self.low_channels:
      raise ValueError(f"this network takes a coarser video of {self.low_channels} channels")
    if (low is None) != (low_level is None):
      raise ValueError("a coarser video goes with its noise level")
    if (guidance is not None) != self.guidance:
      raise ValueError(f"a guidance scale is {'needed' if self.guidance else 'not taken'}")
    if segments is None and text.shape[1] > 1:
      raise ValueError("several captions a row need segments, which say whose is whose")
    check_widths(self.levels, groups=self.groups, head_size=self.head_size, temporal=self.temporal)

  def _embedding(self, level, words, text_mask, segments, low_level, guidance) -> jax.Array:
    e, (b, k, length, d) = self.embedding_width, words.shape
    total = LevelEmbedding(e, name="level")(level)
    if low_level is not None:
      total = total + LevelEmbedding(e, name="low_level")(low_level)
    if guidance is not None:
      y = timestep_embedding(guidance, width=SINUSOIDS, scale=GUIDANCE_SCALE)
      y = Linear(e, axes=(None, "embed"), use_bias=False, init=zeros, name="guidance_scale")(y)
      total = total + y[:, None]
    if self.places:
      place = places_of(segments).astype(jnp.float32).reshape(-1)
      y = timestep_embedding(place, width=SINUSOIDS, scale=1.0)
      y = Linear(e, axes=(None, "embed"), use_bias=False, name="place")(y)
      total = total + constrain(y.reshape(b, -1, e), axes=EMBEDDING)
    heads = max(1, e // self.head_size)
    query = weight(self, "text_query", shape=[1, e], axes=[None, "embed"], init=normal(1.0))
    query = jnp.broadcast_to(query.astype(words.dtype), (b * k, 1, e))
    pooled = MultiHeadAttention(heads, e // heads, name="text_pooling")(
      query, words.reshape(b * k, length, d), mask=text_mask.reshape(b * k, length)
    )
    pooled = constrain(pooled.reshape(b, k, e).astype(jnp.float32), axes=EMBEDDING)
    total = jax.nn.silu(total + of_frames(pooled, segments))
    return constrain(total, axes=EMBEDDING)

  def _strided(self, level: Level, *, name: str) -> Convolution:
    side, stride = level.stride // 2, level.stride
    around = ((side, side), (side, side))
    return convolution(
      level.channels, size=2 * side + 1, strides=(stride, stride), padding=around, name=name
    )

  def _units(self, level: Level, x: jax.Array, given: Sequence[Any], *, name: str) -> jax.Array:
    fields = {
      "features": level.channels,
      "heads": level.channels // self.head_size,
      "groups": self.groups,
      "temporal": self.temporal,
      "init": zeros if self.residual == "zero" else None,
    }
    one: Any = Unit
    if self.remat != "none":
      one = nn.remat(Unit, policy=POLICIES[self.remat])
    for first, count, attention in self._runs(level):
      unit = one
      if count > 1:
        unit = nn.scan(
          rematerialised(Unit, policy=self.remat),
          variable_axes={"params": 0},
          split_rngs={"params": True},
          in_axes=nn.broadcast,  # type: ignore[reportArgumentType]  # as in movie_gen_dit.py
          length=count,
          metadata_params={nn.PARTITION_NAME: "layers"},
        )
      x, _ = unit(**fields, attention=attention, name=f"{name}_{first}")(x, *given)
    return x

  def _runs(self, level: Level) -> Iterator[tuple[int, int, Attending]]:
    """The first of the blocks that make one module, how many they are, and their attention.

    The first block of all stands alone: its input may be of another width.
    """

    def key(block: int) -> Any:
      return (attentions[block], block == 0) if self.scan else block

    attentions = level.attentions()
    for _, run in itertools.groupby(range(level.blocks), key=key):
      blocks = list(run)
      yield blocks[0], len(blocks), attentions[blocks[0]]


def places_of(segments: Int[Array, "b t"]) -> Int[Array, "b t"]:
  """The number of each frame in its own clip, from 0."""
  index = jnp.arange(segments.shape[1])
  begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def enlarged(x: Float[Array, "b t h w c"], *, times: int) -> Float[Array, "b t _ _ c"]:
  """Every pixel so many times along each side."""
  b, t, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, :, None, :, None], (b, t, h, times, w, times, c))
  return x.reshape(b, t, h * times, w * times, c)


def receptive(network: VideoUNet) -> int:
  """How many pixels in from a border of a crop its output may differ from the whole's, at most.

  The crop's corner is at a multiple of the network's `stride`.

  Raises:
    ValueError: norms or attention over all of a frame, in which no crop is as the whole.
  """
  if network.groups or any(level.attention == "self" for level in network.levels):
    raise ValueError(
      "norms of groups, or attention of positions to one another, see all of a frame"
    )
  unit = network.patch
  reach = 2 * unit + network.patch - 1  # the first and the last convolution
  for level in network.levels:
    if level.stride > 1:
      # the strided convolution; the one after the upsampling, and the pixels of which it makes one
      reach += (level.stride // 2 + 1 + level.stride - 1) * unit
      unit *= level.stride
    reach += 2 * level.blocks * 2 * unit
  return reach


def unet_flops(
  network: VideoUNet,
  *,
  frames: int,
  height: int,
  width: int,
  text_length: int,
  captions: int = 1,
  batch: int = 1,
) -> float:
  """FLOPs of convolutions and matrix products, forward, two a multiply-add.

  `frames`, `height` and `width` are the video's, `captions` of a row. Windows that stick out count
  whole, as do scores of frames and words that a mask hides.
  """
  e, words = network.embedding_width, captions * text_length  # of all captions
  h, w = height // network.patch, width // network.patch
  values, stem = network.patch**2, network.stem_width
  total = 9 * (network.channels + network.low_channels) * values * stem * frames * h * w
  total += 9 * stem * network.channels * values * frames * h * w
  total += (2 if network.low_channels else 1) * frames * (SINUSOIDS * e + e * e)
  total += SINUSOIDS * e * ((1 if network.guidance else 0) + (frames if network.places else 0))
  total += captions * 2 * e * e + 2 * words * network.text_width * e + 2 * words * e
  inputs = stem
  for i, level in enumerate(network.levels):
    c, at = level.channels, frames * h * w
    if level.stride > 1:
      total += 9 * at * c * (network.levels[i - 1].channels if i else stem)  # on the way up
      h, w = h // level.stride, w // level.stride
      at = frames * h * w
      total += (2 * (level.stride // 2) + 1) ** 2 * inputs * c * at
      inputs = c
    innermost = i == len(network.levels) - 1
    above = c if innermost else c + _inner_width(network, i)
    for first in (inputs, above):  # of the way down and of the way up
      total += 9 * at * c * (first + (2 * level.blocks - 1) * c)
      total += at * first * c if first != c else 0
      total += level.blocks * frames * 2 * c * e
      for attention in level.attentions():
        seen = text_length + (h * w if attention == "self" else 0)
        if attention != "none":
          total += at * (4 if attention == "self" else 2) * c * c + 2 * at * seen * c
          total += 2 * words * network.text_width * c
      if network.temporal == "attention":
        heads = c // network.head_size  # whose weights come out beside the values
        scores = 3 * at * frames * c + at * frames * frames * heads
        total += level.blocks * (4 * at * c * c + scores)
      elif network.temporal == "convolution":
        total += level.blocks * 3 * at * c * c
    inputs = c
  return 2.0 * batch * total


def _inner_width(network: VideoUNet, i: int) -> int:
  """Channels that come up to level i from within."""
  inner = network.levels[i + 1]
  return network.levels[i].channels if inner.stride > 1 else inner.channels
