"""Movie Gen's temporal autoencoder (Movie Gen, section 3.1.1): eight frames of 8 x 8 pixels to one
vector, for videos of any length, and images.

It is an image autoencoder with a 1-D layer over time after every 2-D one. Every convolution over
space is followed by one over time, the attention over positions by one over frames. The report
gives neither widths nor blocks: those here are of the image autoencoder of Stable Diffusion 3, and
what it leaves open is said with the fields of `TAE`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidgen.nn.attention import attention
from vidgen.nn.convolution import Convolution
from vidgen.nn.linear import Linear
from vidgen.nn.norm import GroupNorm, RMSNorm
from vidgen.nn.partition import constrain
from vidgen.nn.patches import folded, unfolded
from vidgen.nn.remat import POLICIES, RematPolicy
from vidgen.nn.streaming import (
  Delay,
  Piece,
  TemporalConvolution,
  binomial_taps,
  centre_tap,
  each_frame,
  repeat_frames,
  with_past,
)
from vidgen.nn.weights import Initializer, zeros

Temporal = Literal["inflated", "none"]
FRAMES = ("batch", "frames", "rows", None, None)  # axes of a video in the network
LOGVAR = (-30.0, 20.0)  # what a posterior's is clipped to, as in latent diffusion
FAR = -1e30  # the score of a frame that is out of sight: finite, should there be no other


@flax.struct.dataclass
class Posterior:
  """A normal distribution of every latent, float32: mean and logarithm of the variance."""

  mean: Float[Array, "b t h w c"]
  logvar: Float[Array, "b t h w c"]

  def sample(self, key: jax.Array) -> Float[Array, "b t h w c"]:
    """Latents drawn from it."""
    return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape)


class Conv(nn.Module):
  """A convolution over space, then one over time with as many taps as the first has rows.

  `space` "down" halves the sides, with padding behind only, as the image autoencoder does; `time`
  "down" also halves the frames, "up" doubles them between the two, "none" leaves out the second.
  """

  features: int
  size: int = 3
  space: Literal["same", "down"] = "same"
  time: Literal["same", "down", "up", "none"] = "same"

  @nn.compact
  def __call__(self, piece: Piece, *, repeats: int = 2) -> Piece:
    """Computes in x's dtype; `repeats` is what "up" multiplies frames by."""
    side = self.size // 2
    stride, around = (2, (0, 1)) if self.space == "down" else (1, (side, side))
    piece = each_frame(
      piece,
      Convolution(
        self.features,
        (self.size, self.size),
        (stride, stride),
        (around, around),
        axes=("embed", "embed_out"),
        name="spatial",
      ),
    )
    if self.time == "none":
      return piece
    if self.time == "up":
      piece = repeat_frames(piece, times=repeats)
    stride = 2 if self.time == "down" else 1
    init = centre_tap if self.time == "same" else binomial_taps
    return TemporalConvolution(self.size, stride, init=init, name="temporal")(piece)


def norm_of(groups: int, *, name: str) -> nn.Module:
  """A norm over positions and groups of channels; without groups, over each position's channels."""
  return GroupNorm(groups, name=name) if groups else RMSNorm(axis_name=None, name=name)


class ResBlock(nn.Module):
  """Two norms, SiLUs and convolutions, around which the input goes by a shortcut."""

  features: int
  groups: int
  temporal: Temporal

  @nn.compact
  def __call__(self, piece: Piece) -> Piece:
    """The frames with `features` channels."""
    time = "same" if self.temporal == "inflated" else "none"
    y = piece = piece.replace(x=constrain(piece.x, axes=FRAMES))
    for i in (1, 2):
      y = each_frame(y, norm_of(self.groups, name=f"norm{i}"))
      y = Conv(self.features, time=time, name=f"conv{i}")(y.replace(x=jax.nn.silu(y.x)))
    if piece.x.shape[-1] != self.features:
      piece = Conv(self.features, 1, time=time, name="shortcut")(piece)
    x = Delay(name="skip")(piece, lag=y.lag).x
    return y.replace(x=constrain(x + y.x, axes=FRAMES))


class Attention(nn.Module):
  """A norm and attention with one head as wide as the input, around which the input goes.

  over "space": every frame by itself. over "time": every position by itself, to frames at most
  `window` away (None: all); fresh, it adds nothing.
  """

  groups: int
  over: Literal["space", "time"]
  window: int | None = None

  @nn.compact
  def __call__(self, piece: Piece) -> Piece:
    """Computes in x's dtype.

    Raises:
      ValueError: a stream, and attention to all frames.
    """
    x, d, t = piece.x, piece.x.shape[-1], piece.x.shape[1]
    stream = self.over == "time" and piece.step is not None
    wait = 0
    if stream:
      if self.window is None:
        raise ValueError("attention to all frames cannot stream: give the network a window")
      wait = self.window
      x = with_past(self, x, frames=2 * wait)
    norm = norm_of(self.groups, name="norm")
    y = each_frame(piece.replace(x=x), norm).x
    asked = y[:, wait : wait + t]
    q = Linear(d, axes=("embed", "embed_out"), name="query")(asked)
    k, v = (Linear(d, axes=("embed", "embed_out"), name=n)(y) for n in ("key", "value"))
    init: Initializer | None = zeros if self.over == "time" else None
    out = Linear(d, axes=("embed_out", "embed"), init=init, name="out")
    attended = self._space(q, k, v) if self.over == "space" else self._time(q, k, v, piece, wait)
    x = x[:, wait : wait + t] + out(attended)
    return piece.replace(x=constrain(x, axes=FRAMES), lag=piece.lag + wait)

  def _space(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    b, t, h, w, c = q.shape
    q, k, v = (a.reshape(b * t, h * w, 1, c) for a in (q, k, v))
    return attention(q, k, v, key_axis="sequence").reshape(b, t, h, w, c)

  def _time(self, q: jax.Array, k: jax.Array, v: jax.Array, piece: Piece, wait: int) -> jax.Array:
    b, t, h, w, c = q.shape
    bias = None
    if self.window is not None and (piece.step is not None or t - 1 > self.window):
      asked = piece.first - wait + jnp.arange(t)
      keys = piece.first - 2 * wait + jnp.arange(k.shape[1])
      seen = jnp.abs(asked[:, None] - keys) <= self.window
      seen &= (keys >= 0) & (keys < piece.end)
      bias = jnp.where(seen, 0.0, FAR)[None]
    q, k, v = (a.transpose(0, 2, 3, 1, 4).reshape(b * h * w, -1, 1, c) for a in (q, k, v))
    y = attention(q, k, v, bias=bias)
    return y.reshape(b, h, w, t, c).transpose(0, 3, 1, 2, 4)


class Level(nn.Module):
  """Residual blocks of one width, and attention after the first of the innermost.

  A level of the encoder ends in a convolution that halves, one of the decoder in one that doubles;
  `space` and `time` say over what. `first` is the width of a convolution before the blocks, `last`
  that of one after them, behind a norm and SiLU.
  """

  features: int
  blocks: int
  groups: int
  temporal: Temporal
  window: int | None
  remat: RematPolicy
  first: int | None = None
  last: int | None = None
  middle: Literal["none", "before", "after"] = "none"
  space: Literal["same", "down", "up"] = "same"
  time: Literal["same", "down", "up"] = "same"

  @nn.compact
  def __call__(self, piece: Piece, *, repeats: int = 2) -> Piece:
    """The next level's frames; `repeats` is what `time` "up" multiplies frames by."""
    inflated = self.temporal == "inflated"
    same = "same" if inflated else "none"
    block: Any = ResBlock
    attend: Any = Attention
    if self.remat != "none":
      block, attend = (nn.remat(m, policy=POLICIES[self.remat]) for m in (block, attend))

    def middle(piece: Piece) -> Piece:
      piece = block(piece.x.shape[-1], self.groups, self.temporal, name="middle_0")(piece)
      piece = attend(self.groups, "space", name="attention")(piece)
      if inflated:
        piece = attend(self.groups, "time", self.window, name="temporal_attention")(piece)
      return block(piece.x.shape[-1], self.groups, self.temporal, name="middle_1")(piece)

    if self.first is not None:
      piece = Conv(self.first, time=same, name="conv_in")(piece)
    if self.middle == "before":
      piece = middle(piece)
    for i in range(self.blocks):
      piece = block(self.features, self.groups, self.temporal, name=f"block_{i}")(piece)
    if self.middle == "after":
      piece = middle(piece)
    if self.space != "same":
      if self.space == "up":
        piece = each_frame(piece, _doubled)
      space, time = "down" if self.space == "down" else "same", self.time if inflated else "none"
      piece = Conv(self.features, space=space, time=time, name="resize")(piece, repeats=repeats)
    elif inflated and self.time == "down":
      piece = TemporalConvolution(3, 2, init=binomial_taps, name="resize")(piece)
    elif inflated and self.time == "up":
      piece = repeat_frames(piece, times=repeats)
      piece = TemporalConvolution(3, init=binomial_taps, name="resize")(piece)
    if self.last is not None:
      piece = each_frame(piece, norm_of(self.groups, name="norm_out"))
      piece = piece.replace(x=jax.nn.silu(piece.x))
      piece = Conv(self.last, time=same, name="conv_out")(piece)
    return piece


def _doubled(x: jax.Array) -> jax.Array:
  """[b h w c] with every pixel four times."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class Half(nn.Module):
  """Levels one after the other: the encoder or the decoder."""

  levels: Sequence[dict[str, Any]]

  def setup(self) -> None:
    """Names the levels in the order of their work."""
    self.level = [Level(**fields) for fields in self.levels]

  def __call__(self, piece: Piece, *, repeats: int = 2) -> Piece:
    """All levels."""
    for level in self.level:
      piece = level(piece, repeats=repeats)
    return piece

  def one(self, piece: Piece, *, level: int) -> Piece:
    """The level of that number."""
    return self.level[level](piece)


class TAE(nn.Module):
  """Videos [b t h w 3] in [-1, 1] to latents [b ceil(t/8) h/8 w/8 c] and back.

  `channels` of the levels, outermost first, between which the sides halve; `blocks` of a level of
  the encoder (one more in the decoder). Parameters are float32, convolutions and attention run in
  `dtype`, norms in float32; results are float32.

  For small networks, which the report has none of: `patch` x `patch` pixels are the channels of one
  position from the start; only the `spatial_levels` outermost halvings are of sides (None: all);
  with `groups` 0 each position's channels are normalised by themselves.

  Not in the report: widths and blocks; that norms take their statistics from one frame, which
  makes a video of identical frames the same as an image; where frames halve, at the
  `temporal_levels` outermost of the halvings of sides (None: at all), by the convolution over
  time that is there anyway, which starts as a mean of neighbours there, else as the identity;
  `attention_window`, the latent frames on each side that attention over time sees (None: all), 2
  because no frame of the report's tiles of 4 latent frames sees much further.

  `temporal` "none" is the image autoencoder, which takes videos as so many images.
  """

  channels: Sequence[int] = (128, 256, 512, 512)
  blocks: int = 2
  latent_channels: int = 16
  groups: int = 32
  temporal: Temporal = "inflated"
  temporal_levels: int | None = None
  spatial_levels: int | None = None
  patch: int = 1
  attention_window: int | None = 2
  dtype: str = "float32"
  remat: RematPolicy = "none"

  @property
  def spatial_stride(self) -> int:
    """Pixels of a side that become one latent's."""
    return self.patch * 2**self._sides

  @property
  def temporal_stride(self) -> int:
    """Frames that become one latent's."""
    return 2**self._halvings

  @property
  def _sides(self) -> int:
    return len(self.channels) - 1 if self.spatial_levels is None else self.spatial_levels

  @property
  def _halvings(self) -> int:
    if self.temporal == "none":
      return 0
    return len(self.channels) - 1 if self.temporal_levels is None else self.temporal_levels

  def setup(self) -> None:
    """The two halves.

    Raises:
      ValueError: more halvings than are between the levels, or groups that do not divide channels.
    """
    n = len(self.channels)
    for what, count in (("frames", self._halvings), ("sides", self._sides)):
      if not 0 <= count < n:
        raise ValueError(f"{count} halvings of {what}, of {n} levels at most {n - 1}")
    if self.groups and any(c % self.groups for c in self.channels):
      raise ValueError(f"{self.groups} groups do not divide channels {tuple(self.channels)}")
    self.encoder, self.decoder = (Half(levels) for levels in self._levels())

  def _levels(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The fields of the encoder's and of the decoder's levels, in the order of their work."""
    n = len(self.channels)
    shared = {
      "groups": self.groups,
      "temporal": self.temporal,
      "window": self.attention_window,
      "remat": self.remat,
    }
    down, up = [], []
    for i, width in enumerate(self.channels):
      inner, time = i == n - 1, i < self._halvings
      down.append(
        shared
        | {
          "features": width,
          "blocks": self.blocks,
          "first": self.channels[0] if i == 0 else None,
          "last": 2 * self.latent_channels if inner else None,
          "middle": "after" if inner else "none",
          "space": "down" if i < self._sides else "same",
          "time": "down" if time and not inner else "same",
        }
      )
      up.append(
        shared
        | {
          "features": width,
          "blocks": self.blocks + 1,
          "first": width if inner else None,
          "last": 3 * self.patch**2 if i == 0 else None,
          "middle": "before" if inner else "none",
          "space": "up" if 0 < i <= self._sides else "same",
          "time": "up" if 0 < i <= self._halvings else "same",
        }
      )
    return down, up[::-1]

  def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b _ h w 3"]:
    """The reconstruction through the posterior's mean, a multiple of `temporal_stride` frames."""
    return self.decode(self.encode(video).mean)

  def encode(self, video: Float[Array, "b t h w 3"]) -> Posterior:
    """The posterior of the latents of any number of frames.

    Raises:
      ValueError: sides that are no multiples of `spatial_stride`.
    """
    if any(side % self.spatial_stride for side in video.shape[2:4]):
      raise ValueError(f"sides {video.shape[2:4]} are no multiples of {self.spatial_stride}")
    return posterior(self.encoder(Piece(folded(video.astype(self.dtype), self.patch))).x)

  def decode(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ 3"]:
    """`temporal_stride` frames for each of the latents', in about [-1, 1].

    Of a video whose length is no multiple, the frames behind its end are to be dropped.
    """
    x = self.decoder(Piece(latents.astype(self.dtype))).x
    return unfolded(x.astype(jnp.float32), self.patch)

  def decode_image(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ 3"]:
    """Each frame of latents as an image: what each of the frames of its `decode` would be."""
    b, t = latents.shape[:2]
    images = latents.reshape(b * t, 1, *latents.shape[2:])
    # Copies of the only frame stay copies in every layer: one is enough.
    x = self.decoder(Piece(images.astype(self.dtype)), repeats=1).x
    return unfolded(x.reshape(b, t, *x.shape[2:]).astype(jnp.float32), self.patch)

  def encode_level(self, piece: Piece, *, level: int) -> Piece:
    """One level of the encoder, for streams; the last gives what `posterior` takes."""
    x = piece.x.astype(self.dtype)
    return self.encoder.one(piece.replace(x=x if level else folded(x, self.patch)), level=level)

  def decode_level(self, piece: Piece, *, level: int) -> Piece:
    """One level of the decoder, innermost first, for streams."""
    piece = self.decoder.one(piece.replace(x=piece.x.astype(self.dtype)), level=level)
    if level < len(self.channels) - 1:
      return piece
    return piece.replace(x=unfolded(piece.x, self.patch))


def posterior(moments: Float[Array, "b t h w _"]) -> Posterior:
  """The posterior of what the encoder's last level returns."""
  mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
  return Posterior(mean, jnp.clip(logvar, *LOGVAR))


Part = Literal["encode", "decode", "decode_image", "both"]


def tae_flops(network: TAE, *, frames: int, height: int, width: int, part: Part = "both") -> float:
  """FLOPs of convolutions and matrix products for one clip, forward, two a multiply-add.

  `frames`, `height` and `width` are the video's; "decode_image" decodes every frame by itself.
  Attention over time counts all frames, also those that a window hides.
  """
  if part == "both":
    halves = (tae_flops(network, frames=frames, height=height, width=width, part=p) for p in PARTS)
    return sum(halves)
  (down, up), p = network._levels(), network.patch
  if part == "encode":
    return _half_flops(down, inputs=3 * p * p, t=frames, h=height // p, w=width // p)
  h, w = height // network.spatial_stride, width // network.spatial_stride
  if part == "decode":
    t = -(-frames // network.temporal_stride)
    return _half_flops(up, inputs=network.latent_channels, t=t, h=h, w=w)
  image = _half_flops(up, inputs=network.latent_channels, t=1, h=h, w=w, repeats=1)
  return frames * image


PARTS: tuple[Part, Part] = ("encode", "decode")


def _half_flops(
  levels: list[dict[str, Any]], *, inputs: int, t: int, h: int, w: int, repeats: int = 2
) -> float:
  total, c, taps = 0.0, inputs, 3 if levels[0]["temporal"] == "inflated" else 0
  for level in levels:
    f, at = level["features"], t * h * w
    if level["first"] is not None:
      total += _conv_flops(c, level["first"], at, taps=taps)
      c = level["first"]
    blocks = [(c, f)] + [(f, f)] * (2 * level["blocks"] - 1)
    if level["middle"] != "none":
      m = c if level["middle"] == "before" else f
      blocks += [(m, m)] * 4
      total += 2.0 * at * (4 * m * m + 2 * h * w * m)  # attention over space
      total += 2.0 * at * (4 * m * m + 2 * t * m) if taps else 0.0  # and over time
    total += sum(_conv_flops(i, o, at, taps=taps) for i, o in blocks)
    total += _conv_flops(c, f, at, taps=min(taps, 1), size=1) if c != f else 0.0
    c = f
    if level["space"] == "same" and taps and level["time"] != "same":
      t = -(-t // 2) if level["time"] == "down" else t * repeats
      total += 2.0 * taps * c * c * t * h * w
    elif level["space"] != "same":
      h, w = (-(-h // 2), -(-w // 2)) if level["space"] == "down" else (2 * h, 2 * w)
      before = t * h * w
      if taps and level["time"] != "same":
        t = -(-t // 2) if level["time"] == "down" else t * repeats
      total += _conv_flops(c, c, before, taps=taps, after=t * h * w)
    if level["last"] is not None:
      total += _conv_flops(c, level["last"], t * h * w, taps=taps)
  return total


def _conv_flops(
  i: int, o: int, at: int, *, taps: int, size: int = 3, after: int | None = None
) -> float:
  """Over space at `at` positions, then over time at `after` of them (None: as many)."""
  return 2.0 * (size * size * i * o * at + taps * o * o * (at if after is None else after))
