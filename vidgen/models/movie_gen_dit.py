"""Movie Gen Video's transformer (Movie Gen, sections 3.1.3 and 3.1.4), for any T x H x W.

Where the report is silent, the choice follows its parameter count: the modulation projection is
shared by all layers, each of which adds a table of its own.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vidgen.nn.attention import MultiHeadAttention
from vidgen.nn.embeddings import FactorisedPositions, timestep_embedding
from vidgen.nn.linear import GatedMLP, Linear
from vidgen.nn.norm import LayerNorm, RMSNorm
from vidgen.nn.partition import constrain
from vidgen.nn.patches import Grid, grid_of, patchify, unpatchify
from vidgen.nn.remat import RematPolicy, checkpoint_name, rematerialised
from vidgen.nn.weights import weight, zeros

TIME_WIDTH = 256  # of the sinusoidal embedding
STREAM = ("batch", "tokens", None)  # axes of the residual stream


class Block(nn.Module):
  """One layer: positions added, then self-attention, cross-attention and the gated MLP."""

  heads: int
  mlp_width: int
  norm_epsilon: float
  qk_norm: bool
  per_layer_modulation: bool

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s d"],
    positions: Float[Array, "b s d"],
    modulation: Float[Array, "b m d"],
    context: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
  ) -> tuple[Float[Array, "b s d"], None]:
    """The next residual stream (and None, for the scan).

    `modulation` holds the six shared vectors, or with `per_layer_modulation` the one time
    embedding from which this layer projects its own.
    """
    d = x.shape[-1]
    if self.per_layer_modulation:
      linear = Linear(6 * d, axes=("embed", "embed_out"), init=zeros, name="modulation")
      vectors = linear(jax.nn.silu(modulation[:, 0])).reshape(-1, 6, d)
    else:
      vectors = modulation + weight(
        self, "modulation_table", shape=[6, d], axes=[None, "embed"], init=zeros
      )
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(vectors, 6, axis=1)
    attend = {"heads": self.heads, "head_size": d // self.heads, "qk_norm": self.qk_norm}

    x = constrain(x, axes=STREAM)
    x = x + positions.astype(x.dtype)
    y = RMSNorm(self.norm_epsilon, name="self_attention_norm")(x)
    y = modulate(y, shift=shift_1, scale=scale_1)
    y = constrain(MultiHeadAttention(**attend, name="self_attention")(y, y), axes=STREAM)
    x = x + gate_1.astype(x.dtype) * checkpoint_name(y, "self_attention")

    y = MultiHeadAttention(**attend, name="cross_attention")(x, context, mask=mask)
    y = constrain(y, axes=STREAM)
    x = x + checkpoint_name(y, "cross_attention")

    y = RMSNorm(self.norm_epsilon, name="mlp_norm")(x)
    y = modulate(y, shift=shift_2, scale=scale_2)
    y = constrain(GatedMLP(self.mlp_width, name="mlp")(y), axes=STREAM)
    x = x + gate_2.astype(x.dtype) * checkpoint_name(y, "mlp")
    return constrain(x, axes=STREAM), None


def modulate(
  x: Float[Array, "b s d"], *, shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]
) -> Float[Array, "b s d"]:
  """x * (1 + scale) + shift, in float32; the result has the dtype of `x`."""
  return (x.astype(jnp.float32) * (1 + scale) + shift).astype(x.dtype)


class MovieGenDiT(nn.Module):
  """Predicts a field over latents from noisy latents, time in [0, 1] and text embeddings.

  Fields (the report's 30B model): `layers` 48, `width` 6144, `heads` 48 of size 128, `mlp_width`
  16384, `patch` 1 x 2 x 2, `max_grid` 32 x 96 x 96 patches, `channels` 16. `text_widths` is the
  width of each text stream by name. Parameters are float32; matmuls run in `dtype`. Not in the
  report: `position_scale` (standard deviation of fresh position tables), `qk_norm`, `pooled_text`
  (the mean of the text added to the time embedding), `per_layer_modulation` (a projection in every
  layer instead of a shared one).

  `condition_channels`: of latents to generate from, beside the noisy ones (section 3.1.5). Their
  weights start at zero, so that a fresh network is the one without them.
  """

  channels: int
  layers: int
  width: int
  heads: int
  mlp_width: int
  text_widths: Mapping[str, int]
  patch: Grid = (1, 2, 2)
  max_grid: Grid = (32, 96, 96)
  position_scale: float = 0.02
  norm_epsilon: float = 1e-5
  qk_norm: bool = False
  pooled_text: bool = False
  per_layer_modulation: bool = False
  condition_channels: int = 0
  dtype: str = "bfloat16"
  remat: RematPolicy = "full"
  scan_unroll: int = 1

  @nn.compact
  def __call__(
    self,
    latents: Float[Array, "b t h w c"],
    time: Float[Array, " b"],
    text: Mapping[str, Float[Array, "b _ _"]],
    text_masks: Mapping[str, Bool[Array, "b _"]],
    condition: Float[Array, "b t h w _"] | None = None,
  ) -> Float[Array, "b t h w c"]:
    """The field at `latents`, float32. Text that no mask admits contributes nothing.

    Raises:
      ValueError: the sides are not multiples of the patch, the grid is larger than `max_grid`, the
        text streams are not those of `text_widths`, or `condition` not of `condition_channels`.
    """
    if (0 if condition is None else condition.shape[-1]) != self.condition_channels:
      raise ValueError(f"this network takes a condition of {self.condition_channels} channels")
    if set(text) != set(self.text_widths) or set(text_masks) != set(text):
      raise ValueError(f"text streams {sorted(text)} are not {sorted(self.text_widths)}")
    d, dtype = self.width, jnp.dtype(self.dtype)
    grid = grid_of(latents.shape[1:4], patch=self.patch)
    x = constrain(patchify(latents.astype(dtype), patch=self.patch), axes=STREAM)
    x = constrain(Linear(d, axes=(None, "embed"), name="patch_in")(x), axes=STREAM)
    if condition is not None:  # one linear over both, in two parts: the first may come trained
      y = constrain(patchify(condition.astype(dtype), patch=self.patch), axes=STREAM)
      linear = Linear(d, axes=(None, "embed"), use_bias=False, init=zeros, name="patch_condition")
      x = constrain(x + linear(y), axes=STREAM)
    positions = FactorisedPositions(
      self.max_grid, d, init_scale=self.position_scale, name="positions"
    )(grid)
    # One for each example: gradients are summed over the batch after the layers, not in each.
    positions = constrain(jnp.broadcast_to(positions, x.shape), axes=STREAM)

    streams = []
    for name in sorted(self.text_widths):
      y = Linear(d, axes=("text", "embed"), name=f"text_{name}")(text[name].astype(dtype))
      streams.append(LayerNorm(name=f"text_{name}_norm")(y))
    context = constrain(jnp.concatenate(streams, axis=1), axes=("batch", None, None))
    mask = jnp.concatenate([text_masks[name] for name in sorted(self.text_widths)], axis=1)

    # Conditioning on time stays float32: it is small, and it scales every activation.
    time_in = Linear(d, axes=(None, "embed"), name="time_in")
    time_out = Linear(d, axes=("embed", "embed_out"), name="time_out")
    condition = time_out(jax.nn.silu(time_in(timestep_embedding(time, width=TIME_WIDTH))))
    if self.pooled_text:
      weights = mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
      pooled = jnp.sum(weights[:, :, None] * context, axis=1, dtype=jnp.float32)
      condition = condition + Linear(d, axes=("embed", "embed_out"), name="text_pooled")(pooled)
    condition = constrain(condition, axes=("batch", None))
    if self.per_layer_modulation:
      modulation = condition[:, None]
    else:
      linear = Linear(6 * d, axes=("embed", "embed_out"), init=zeros, name="modulation")
      modulation = linear(jax.nn.silu(condition)).reshape(-1, 6, d)
    modulation = constrain(modulation, axes=("batch", None, None))

    blocks = nn.scan(
      rematerialised(Block, policy=self.remat),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,  # type: ignore[reportArgumentType]  # its annotation forgets this value
      length=self.layers,
      unroll=self.scan_unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = blocks(
      heads=self.heads,
      mlp_width=self.mlp_width,
      norm_epsilon=self.norm_epsilon,
      qk_norm=self.qk_norm,
      per_layer_modulation=self.per_layer_modulation,
      name="blocks",
    )(x, positions, modulation, context, mask)

    table = weight(self, "out_table", shape=[2, d], axes=[None, "embed"], init=zeros)
    shift, scale = jnp.split(table + condition[:, None], 2, axis=1)
    x = modulate(RMSNorm(self.norm_epsilon, name="out_norm")(x), shift=shift, scale=scale)
    values = self.channels * self.patch[0] * self.patch[1] * self.patch[2]
    out = Linear(values, axes=("embed", None), use_bias=False, init=zeros, name="patch_out")
    return unpatchify(out(x).astype(jnp.float32), grid=grid, patch=self.patch)


def forward_flops(
  network: MovieGenDiT, *, grid: Grid, text_lengths: Mapping[str, int], batch: int = 1
) -> float:
  """FLOPs of the matrix products of one forward pass, two a multiply-add.

  `grid` is in patches; `text_lengths` is the length of each text stream.
  """
  d, f = network.width, network.mlp_width
  s = grid[0] * grid[1] * grid[2]
  words = sum(text_lengths.values())
  patch = network.patch[0] * network.patch[1] * network.patch[2]
  values = patch * (2 * network.channels + network.condition_channels)  # in and out
  self_attention = 4 * s * d * d + 2 * s * s * d  # in multiply-adds
  cross_attention = 2 * s * d * d + 2 * words * d * d + 2 * s * words * d
  block = self_attention + cross_attention + 3 * s * d * f
  text = sum(text_lengths[name] * width * d for name, width in network.text_widths.items())
  modulation = 6 * d * d * (network.layers if network.per_layer_modulation else 1)
  time = TIME_WIDTH * d + d * d + modulation + (d * d if network.pooled_text else 0)
  return 2.0 * batch * (network.layers * block + text + time + s * values * d)
