"""Movie Gen Video as a stage: a flow-matching transformer over latents, conditioned on text."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from vidgen.diffusion import flow
from vidgen.diffusion.guidance import guided
from vidgen.errors import ConfigError
from vidgen.models.movie_gen_dit import MovieGenDiT, forward_flops
from vidgen.nn.partition import axes_of, unboxed
from vidgen.nn.patches import Grid, grid_of
from vidgen.nn.remat import RematPolicy
from vidgen.systems.shapes import (
  BatchShape,
  LatentConfig,
  array_spec,
  check_shapes,
  shape_of,
)
from vidgen.systems.stage import Batch, BatchSpec, Metrics, Params, SampleSettings
from vidgen.systems.text import (
  ByteTextConfig,
  Text,
  TextReader,
  TextStream,
  bytes_full,
  check_text,
  encoder_params,
)


def _paper_streams() -> dict[str, TextStream]:
  # Widths and MetaCLIP's length are the paper's; the other lengths are not given by the paper.
  return {
    "ul2": TextStream(width=4096, length=300),
    "byt5": TextStream(width=1472, length=100),
    "metaclip": TextStream(width=1280, length=256),
  }


@dataclasses.dataclass(frozen=True)
class T2VConfig:
  """Movie Gen Video; the defaults are the 30B model at 256 pixels.

  Exactly one source of text: `text_streams` (precomputed embeddings) or `text_encoder`. Without
  `latent` the network works on pixels.
  """

  layers: int = 48
  width: int = 6144
  heads: int = 48
  mlp_width: int = 16384
  patch: tuple[int, int, int] = (1, 2, 2)
  max_grid: tuple[int, int, int] = (32, 96, 96)
  position_scale: float = 0.02  # of fresh position tables; not given by the paper
  norm_epsilon: float = 1e-5
  qk_norm: bool = False  # not given by the paper
  pooled_text: bool = False  # not given by the paper
  per_layer_modulation: bool = False  # not given by the paper; its parameter count says shared

  latent: LatentConfig | None = dataclasses.field(default_factory=LatentConfig)
  text_streams: dict[str, TextStream] = dataclasses.field(default_factory=_paper_streams)
  text_encoder: ByteTextConfig | None = None
  buckets: tuple[BatchShape, ...] = (
    BatchShape("video", frames=256, height=256, width=256),
    BatchShape("image", frames=1, height=256, width=256),
  )

  sigma_min: float = 1e-5
  time_loc: float = 0.0
  time_scale: float = 1.0
  # "velocity" is the paper's. "data" has the network predict the clip, from which the velocity
  # follows; the loss stays on the velocity, and learns faster when a patch holds many values.
  prediction: Literal["velocity", "data"] = "velocity"
  noise_floor: float = 0.05  # of the weight 1 / sigma^2 of "data"; not given by the paper

  dtype: Literal["float32", "bfloat16"] = "bfloat16"  # not given by the paper
  remat: RematPolicy = "full"  # not given by the paper; see `nn.remat`
  scan_unroll: int = 1

  def __post_init__(self):
    check_text(self.text_streams, self.text_encoder)
    if self.width % self.heads:
      raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
    if self.time_scale <= 0 or self.noise_floor <= 0 or not 0 <= self.sigma_min < 1:
      raise ValueError("time_scale and noise_floor must be positive, sigma_min in [0, 1)")
    check_shapes(self.buckets)
    for bucket in self.buckets:
      self._check_grid(bucket)

  def _check_grid(self, bucket: BatchShape) -> None:
    grid = self.grid(self.latent_shape(bucket)[:3])
    if any(side > most for side, most in zip(grid, self.max_grid, strict=True)):
      raise ValueError(f"bucket {bucket.name}: grid {grid} exceeds max_grid {self.max_grid}")

  def latent_shape(self, bucket: BatchShape) -> tuple[int, int, int, int]:
    """t, h, w, c of what the network generates for `bucket`.

    Raises:
      ValueError: the frame is not a multiple of the autoencoder's stride.
    """
    if self.latent is None:
      return bucket.frames, bucket.height, bucket.width, 3
    stride = self.latent.spatial_stride
    if bucket.height % stride or bucket.width % stride:
      raise ValueError(f"bucket {bucket.name}: sides are not multiples of {stride}")
    frames = math.ceil(bucket.frames / self.latent.temporal_stride)
    return frames, bucket.height // stride, bucket.width // stride, self.latent.channels

  def grid(self, shape: Sequence[int]) -> Grid:
    """The patches along t, h and w that the network makes of latents of `shape` t x h x w.

    Raises:
      ValueError: a side is not a multiple of the patch.
    """
    return grid_of(shape, patch=self.patch)

  def sample_shape(self, settings: SampleSettings) -> tuple[int, int, int, int]:
    """t, h, w, c of what is generated with `settings`: the first bucket's, where they do not say.

    Raises:
      ConfigError: the network cannot make that shape.
    """
    sizes = {name: getattr(settings, name) for name in ("frames", "height", "width")}
    asked = {name: size for name, size in sizes.items() if size is not None}
    shape = dataclasses.replace(self.buckets[0], **asked)
    try:
      self._check_grid(shape)
    except ValueError as error:
      raise ConfigError(
        f"samples of {shape.frames} x {shape.height} x {shape.width} (frames, height, width) "
        f"cannot be made: {error}"
      ) from error
    return self.latent_shape(shape)


class T2VStage:
  """`vidgen.systems.stage.Stage` for Movie Gen Video.

  Parameters: `network`, and `text` where the text encoder is trained along. A batch holds "video"
  [b, t, h, w, 3] in [-1, 1], or "latents" [b, t, h, w, c] where the config has `latent`; "text"
  and "text_mask" [b, l], or for each text stream NAME [b, l, width] and NAME_mask [b, l]; "fps"
  [b], which the paper gives to the network in words, as a prefix of the caption.
  """

  def __init__(self, config: T2VConfig):
    self.config = config
    c = config
    self.flow = flow.Flow(sigma_min=c.sigma_min)
    self.times = flow.LogitNormal(loc=c.time_loc, scale=c.time_scale)
    self.text = TextReader(c.text_streams, c.text_encoder)
    self.network = MovieGenDiT(
      channels=c.latent_shape(c.buckets[0])[-1],
      layers=c.layers,
      width=c.width,
      heads=c.heads,
      mlp_width=c.mlp_width,
      text_widths=self.text.widths,
      patch=c.patch,
      max_grid=c.max_grid,
      position_scale=c.position_scale,
      norm_epsilon=c.norm_epsilon,
      qk_norm=c.qk_norm,
      pooled_text=c.pooled_text,
      per_layer_modulation=c.per_layer_modulation,
      dtype=c.dtype,
      remat=c.remat,
      scan_unroll=c.scan_unroll,
    )

  @property
  def buckets(self) -> tuple[str, ...]:
    """Names of the batch shapes."""
    return tuple(bucket.name for bucket in self.config.buckets)

  @property
  def generated(self) -> tuple[str, ...]:
    """What sampling makes: the clip, as pixels or as latents."""
    return ("video", "latents")

  @property
  def required(self) -> tuple[str, ...]:
    """Nothing: all parts of the parameters train."""
    return ()

  @property
  def frozen(self) -> tuple[str, ...]:
    """Nothing."""
    return ()

  def init(self, rng: Key[Array, ""]) -> Params:
    """Fresh float32 parameters from one key."""
    return unboxed(self._boxed(rng))

  def logical_axes(self) -> Params:
    """A tree like the parameters, each leaf the tuple of its axes' logical names."""
    return axes_of(jax.eval_shape(self._boxed, jax.random.key(0)))

  def _boxed(self, rng: Key[Array, ""]) -> Params:
    network_rng, text_rng = jax.random.split(rng)
    # Parameters do not depend on the size of the clip or the text: one patch and one token do.
    latents = jnp.zeros((1, *self.config.patch, self.network.channels))
    text = {name: jnp.zeros((1, 1, w)) for name, w in self.network.text_widths.items()}
    masks = {name: jnp.ones((1, 1), bool) for name in text}
    channels = self.network.condition_channels
    condition = jnp.zeros((1, *self.config.patch, channels)) if channels else None
    inputs = (latents, jnp.zeros(1), text, masks, condition)
    params = {"network": self.network.init(network_rng, *inputs)["params"]}
    if self.text.encoder is not None:
      params["text"] = self.text.init(text_rng)
    return params

  def loss(self, params: Params, batch: Batch, rng: Key[Array, " b"]) -> tuple[Array, Metrics]:
    """The mean squared error of the velocity over batch and elements.

    Metrics: "loss", and "loss_time_0" to "loss_time_3", the loss within each quarter of time.
    With a text encoder also "text_cut", the share of captions that are longer than is read: they
    have more words, or they fill all bytes, among them those that just fit, as a caption that was
    cut looks the same. These are unbiased means, which may be averaged over batches of any size: an
    example counts by the inverse of the probability of its quarter.
    """
    data = batch["video" if self.config.latent is None else "latents"].astype(jnp.float32)
    noise, time = jax.vmap(lambda key: self._draw(key, data.shape[1:]))(rng)
    time = flow.FlowTime(time)
    x = self.flow.path(noise, data, time)
    prediction = self._predict(params, x, time, self._conditions(params, batch))
    if self.config.prediction == "velocity":
      error = prediction - self.flow.velocity(noise, data)
    else:  # the same error, but for the floor: dividing by sigma turns data into velocity
      error = prediction - data
      error = error / jnp.maximum(self.flow.sigma(time, ndim=5), self.config.noise_floor)
    losses = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
    metrics = {"loss": losses.mean()}
    for i, (low, high) in enumerate(itertools.pairwise((0.0, 0.25, 0.5, 0.75, 1.0))):
      inside = (time.value >= low) & (time.value < high)
      probability = self.times.probability(low, high)
      metrics[f"loss_time_{i}"] = jnp.mean(losses * inside) / max(probability, 1e-9)
    if self.text.encoder is not None:
      metrics["text_cut"] = jnp.mean(self.text_cut(batch) | bytes_full(batch))
    return losses.mean(), metrics

  def _draw(self, rng, shape):
    noise_rng, time_rng = jax.random.split(rng)
    return jax.random.normal(noise_rng, shape), self.times.draw(time_rng)

  def _predict(self, params: Params, x: Array, time: flow.FlowTime, conditions: Any) -> Array:
    out: Any = self.network.apply({"params": params["network"]}, x, time.value, *conditions)
    return out

  def _conditions(self, params: Params, batch: Batch) -> Any:
    """What the network is told besides `x` and the time: a pytree, axis b first."""
    return self._text(params, batch)

  def _text(self, params: Params, batch: Batch) -> Text:
    return self.text.read(encoder_params(params), batch)

  def sample(
    self, params: Params, inputs: Batch, rng: Key[Array, " b"], settings: SampleSettings
  ) -> dict[str, Array]:
    """Samples of the shape that `settings` say for the text of `inputs`, noise from a key each.

    Returns "latents" [b, t, h, w, c], and "video" [b, t, h, w, 3] in [-1, 1] where this stage can
    decode: the latents of an autoencoder are the autoencoder's to decode.
    """
    shape = self.config.sample_shape(settings)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(rng)
    velocity = guided(
      lambda x, time, conditions: self._velocity(params, x, time, conditions),
      conditional=self._conditions(params, inputs),
      null=self._conditions(params, self.text.without(inputs)),
      scale=settings.guidance_scale,
    )
    latents = flow.euler(velocity, noise, times=sampler_times(settings))
    if self.config.latent is not None:
      return {"latents": latents}
    return {"latents": latents, "video": self.decode(params, latents)}

  def _velocity(self, params: Params, x: Array, time: flow.FlowTime, conditions: Any) -> Array:
    prediction = self._predict(params, x, time, conditions)
    if self.config.prediction == "velocity":
      return prediction
    return self.flow.velocity_from_data(prediction, x, time)

  def decode(self, params: Params, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Pixels clipped to [-1, 1].

    Raises:
      ConfigError: the latents are an autoencoder's.
    """
    del params
    if self.config.latent is not None:
      raise ConfigError("these latents are an autoencoder's: its stage decodes them")
    return jnp.clip(latents, -1, 1)

  def text_cut(self, batch: Batch) -> Bool[Array, " b"]:
    """Which texts have more words than the text encoder reads; none of embeddings, read whole."""
    return self.text.cut(batch)

  def batch_spec(self, batch_size: int, bucket: str = "video") -> BatchSpec:
    """What `loss` eats, for one bucket.

    Raises:
      ConfigError: no such bucket.
    """
    shape = self.config.latent_shape(shape_of(self.config.buckets, bucket))
    name = "video" if self.config.latent is None else "latents"
    spec = {name: array_spec((batch_size, *shape), jnp.float32)}
    spec |= self.text.spec(batch_size)
    spec["fps"] = array_spec((batch_size,), jnp.float32)
    return spec

  def flops(self, batch_spec: BatchSpec) -> float:
    """FLOPs of the matrix products of one forward pass over such a batch."""
    shape = batch_spec["video" if self.config.latent is None else "latents"].shape
    grid = self.config.grid(shape[1:4])
    lengths = {name: batch_spec[name].shape[1] for name in self.text.streams} or self.text.lengths
    network = forward_flops(self.network, grid=grid, text_lengths=lengths, batch=shape[0])
    return network + self.text.flops(batch_spec)


def sampler_times(settings: SampleSettings) -> np.ndarray:
  """The times at which a sampler stops, from noise to data; float64 [steps + 1]."""
  if settings.schedule == "linear":
    return flow.linear_times(settings.steps)
  return flow.linear_quadratic_times(settings.steps, linear_steps=settings.linear_steps)
