"""Movie Gen's spatial upsampler as a stage: video to larger video (Movie Gen, section 3.1.5).

The text-to-video transformer, smaller, which beside the noisy latents is given those of the small
clip, resized to the target before it was encoded frame by frame. Clips longer than it was trained
on are sampled in windows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vidgen.diffusion import flow
from vidgen.diffusion.guidance import guided
from vidgen.diffusion.windows import Kind, multi_diffusion, window_starts, window_weights
from vidgen.errors import ConfigError
from vidgen.nn.patches import Grid, grid_of
from vidgen.systems.movie_gen.t2v import T2VConfig, T2VStage, sampler_times
from vidgen.systems.shapes import BatchShape, LatentConfig
from vidgen.systems.stage import Batch, BatchSpec, Metrics, Params, SampleSettings

# Folded into the key of a sample or an example, for draws that are not the base stage's: a chain
# of stages gives each the same key.
NOISE, CONDITION_NOISE = 0x75707363, 0x636F6E64


@dataclasses.dataclass(frozen=True)
class UpsamplerConfig(T2VConfig):
  """The upsampler; the defaults are the 7B model: 14 frames of 1080 x 1920.

  "7B" and the 14 frames are the paper's; layers and widths are not given by it. An autoencoder's
  `latent` has to be frame-wise (temporal stride 1). Sides need not be multiples of the patch: the
  network sees latents with their last row and column repeated (135 rows at 1080 pixels become 136),
  and what it makes of the added ones is left out of the loss and of the result.

  Windows, in which a clip longer than the first bucket is sampled, share `overlap` frames (the
  paper's 4), are weighted by `window_weights` (not given by the paper) and run `windows_at_once` an
  example. `condition_noise` is the standard deviation of noise on the condition in training (not
  given by the paper).
  """

  layers: int = 36
  width: int = 3456
  heads: int = 27
  mlp_width: int = 9216
  max_grid: tuple[int, int, int] = (14, 68, 120)
  latent: LatentConfig | None = dataclasses.field(
    default_factory=lambda: LatentConfig(temporal_stride=1)
  )
  buckets: tuple[BatchShape, ...] = (BatchShape("video", frames=14, height=1080, width=1920),)
  overlap: int = 4
  window_weights: Kind = "linear"
  windows_at_once: int = 1
  condition_noise: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.latent is not None and self.latent.temporal_stride != 1:
      raise ValueError(
        "the upsampler works on frame-wise latents: latent.temporal_stride must be 1"
      )
    if not 0 <= self.overlap < self.buckets[0].frames:
      raise ValueError(f"overlap {self.overlap} is not less than the first bucket's frames")
    if self.windows_at_once < 1 or self.condition_noise < 0:
      raise ValueError("windows_at_once must be at least 1, condition_noise 0 or more")

  def grid(self, shape: Sequence[int]) -> Grid:
    """As `T2VConfig.grid`, of the padded latents."""
    t, h, w = shape
    return grid_of((t, *_padded_sides(h, w, patch=self.patch)), patch=self.patch)


class UpsamplerStage(T2VStage):
  """`vidgen.systems.stage.Stage` for the upsampler.

  A batch holds what `T2VStage` eats, of frame-wise latents, and "condition", like "latents" of the
  clip to upsample, resized to the size of the result before it was encoded. Without `latent` both
  are pixels in [-1, 1].
  """

  config: UpsamplerConfig

  def __init__(self, config: UpsamplerConfig):
    super().__init__(config)
    self.network = self.network.clone(condition_channels=self.network.channels)

  def loss(self, params: Params, batch: Batch, rng: Key[Array, " b"]) -> tuple[Array, Metrics]:
    """As `T2VStage.loss`, given the condition."""
    if self.config.condition_noise:
      condition = batch["condition"].astype(jnp.float32)
      noise = _normal(rng, condition.shape[1:], purpose=CONDITION_NOISE)
      batch = {**batch, "condition": condition + self.config.condition_noise * noise}
    return super().loss(params, batch, rng)

  def _conditions(self, params: Params, batch: Batch) -> Any:
    return (*self._text(params, batch), batch["condition"].astype(jnp.float32))

  def _predict(self, params: Params, x: Array, time: flow.FlowTime, conditions: Any) -> Array:
    *text, condition = conditions
    patch = self.config.patch
    given = (*text, pad_to_patch(condition, patch=patch))
    prediction = super()._predict(params, pad_to_patch(x, patch=patch), time, given)
    return prediction[:, :, : x.shape[2], : x.shape[3]]

  def sample(
    self, params: Params, inputs: Batch, rng: Key[Array, " b"], settings: SampleSettings
  ) -> dict[str, Array]:
    """Samples of the shape of `inputs["condition"]`, of any length; noise from a key each.

    At every step the velocities of overlapping windows are averaged (`diffusion.windows`).
    Guidance is on the text; the condition is given to both passes.

    Raises:
      ConfigError: the condition exceeds `max_grid` or does not divide into patches, or `settings`
        ask for another shape.
    """
    c, condition = self.config, inputs["condition"].astype(jnp.float32)
    t = condition.shape[1]
    size = min(t, c.latent_shape(c.buckets[0])[0])
    self._check(condition.shape, size=size, settings=settings)
    texts = {
      "text": self._text(params, inputs),
      "null": self._text(params, self.text.without(inputs)),
    }

    def predict(x, time, texts, condition):
      velocity = guided(
        lambda x, time, conditions: self._velocity(params, x, time, conditions),
        conditional=(*texts["text"], condition),
        null=(*texts["null"], condition),
        scale=settings.guidance_scale,
      )
      return velocity(x, time)

    overlap = min(c.overlap, size - 1)
    velocity = multi_diffusion(
      predict,
      shared=texts,
      framed=condition,
      starts=window_starts(t, size=size, overlap=overlap),
      weights=window_weights(size, overlap=overlap, kind=c.window_weights),
      at_once=c.windows_at_once,
    )
    noise = _normal(rng, (*condition.shape[1:4], self.network.channels), purpose=NOISE)
    latents = flow.euler(velocity, noise, times=sampler_times(settings))
    if c.latent is not None:
      return {"latents": latents}
    return {"latents": latents, "video": self.decode(params, latents)}

  def _check(self, shape: Sequence[int], *, size: int, settings: SampleSettings) -> None:
    c = self.config
    stride = 1 if c.latent is None else c.latent.spatial_stride
    shape = tuple(shape[1:4])
    asked = (settings.frames, settings.height, settings.width)
    given = (shape[0], shape[1] * stride, shape[2] * stride)
    if any(a not in (None, g) for a, g in zip(asked, given, strict=True)):
      raise ConfigError(f"settings ask for t x h x w {asked}, the clip to upsample has {given}")
    try:
      grid = c.grid((size, *shape[1:]))
    except ValueError as error:
      raise ConfigError(f"the clip to upsample: {error}") from error
    if any(side > most for side, most in zip(grid, c.max_grid, strict=True)):
      raise ConfigError(f"the clip to upsample: its grid {grid} exceeds max_grid {c.max_grid}")

  def batch_spec(self, batch_size: int, bucket: str = "video") -> BatchSpec:
    """As `T2VStage.batch_spec`, and the condition."""
    spec = super().batch_spec(batch_size, bucket)
    return {**spec, "condition": spec["video" if self.config.latent is None else "latents"]}


def resized(
  low: Float[Array, "b t h w 3"], *, height: int, width: int
) -> Float[Array, "b t _ _ 3"]:
  """A small clip bilinearly at the target's size, where it is encoded; float32."""
  b, t = low.shape[:2]
  shape = (b, t, height, width, 3)
  return jax.image.resize(low.astype(jnp.float32), shape, "bilinear", antialias=False)


def pad_to_patch(x: Float[Array, "b t h w c"], *, patch: Grid) -> Float[Array, "b t h2 w2 c"]:
  """`x` with its last row and its last column repeated up to multiples of the patch."""
  h, w = x.shape[2:4]
  high, wide = _padded_sides(h, w, patch=patch)
  if (high, wide) == (h, w):
    return x
  return jnp.pad(x, ((0, 0), (0, 0), (0, high - h), (0, wide - w), (0, 0)), mode="edge")


def _padded_sides(h: int, w: int, *, patch: Grid) -> tuple[int, int]:
  return -(-h // patch[1]) * patch[1], -(-w // patch[2]) * patch[2]


def _normal(rng: Key[Array, " b"], shape: Sequence[int], *, purpose: int) -> Float[Array, "b ..."]:
  draw = lambda key: jax.random.normal(jax.random.fold_in(key, purpose), tuple(shape))  # noqa: E731
  return jax.vmap(draw)(rng)
