"""Movie Gen's temporal autoencoder as a stage: videos and images to latents and back, and the
losses it is trained with (Movie Gen, section 3.1.1)."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vidgen.models.discriminator import Over, PatchDiscriminator, discriminator_flops
from vidgen.models.lpips import LPIPS, Net, lpips_flops
from vidgen.models.tae import TAE, Posterior, Temporal, tae_flops
from vidgen.nn.partition import axes_of, unboxed
from vidgen.nn.remat import RematPolicy
from vidgen.systems.shapes import BatchShape, array_spec, check_shapes, shape_of
from vidgen.systems.stage import Batch, BatchSpec, Metrics, Params, SampleSettings

# Folded into an example's key, one for each kind of draw.
NOISE, FRAMES = 1, 2
# The smallest side that a trunk of LPIPS takes.
LEAST_SIDE: dict[str, int] = {"vgg": 16, "alex": 31}


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """The network of patches that tells real from reconstructed; not given by the paper."""

  channels: int = 64
  layers: int = 3
  groups: int = 32
  over: Over = "frame"


@dataclasses.dataclass(frozen=True)
class TAEConfig:
  """The autoencoder; the defaults have the shape of Stable Diffusion 3's, inflated: 8 x 8 x 8.

  The paper names the losses; of their weights it gives only the outlier penalty's.
  reconstruction: mean over pixel values. kl_weight: of nats a pixel value, so that it is latent
  diffusion's 1e-6. perceptual_weight and gan_weight: of LPIPS and of minus the mean logit. A
  `discriminator` is trained also while gan_weight is 0; None leaves it out. outlier_weight: the
  paper's for a reconstruction that is summed over a frame's pixel values; ours is their mean, and
  it is divided by their number. outlier_radius: r of the penalty.

  decoded: what the decoder is trained on, a sample of the posterior or its mean. judged_frames: how
  many frames of a clip LPIPS and the discriminator look at, drawn anew each time; None: all. The
  network's own fields are as in `models.tae.TAE`.
  """

  channels: tuple[int, ...] = (128, 256, 512, 512)
  blocks: int = 2
  latent_channels: int = 16
  groups: int = 32
  temporal: Temporal = "inflated"
  temporal_levels: int | None = None
  spatial_levels: int | None = None
  patch: int = 1
  attention_window: int | None = 2
  buckets: tuple[BatchShape, ...] = (
    BatchShape("video", frames=32, height=256, width=256),  # frames: not given by the paper
    BatchShape("image", frames=1, height=256, width=256),
  )

  reconstruction: Literal["l1", "l2"] = "l1"
  reconstruction_weight: float = 1.0
  perceptual_weight: float = 1.0
  perceptual_net: Net = "vgg"
  kl_weight: float = 1e-6
  outlier_weight: float = 1e5
  outlier_radius: float = 3.0
  gan_weight: float = 0.1
  discriminator: DiscriminatorConfig | None = DiscriminatorConfig()
  judged_frames: int | None = None
  decoded: Literal["sample", "mean"] = "sample"

  dtype: Literal["float32", "bfloat16"] = "bfloat16"  # not given by the paper
  remat: RematPolicy = "full"  # not given by the paper; see `nn.remat`

  def __post_init__(self):
    check_shapes(self.buckets)
    halvings = len(self.channels) - 1
    if not self.channels or (self.groups and any(c % self.groups for c in self.channels)):
      raise ValueError(f"groups {self.groups} do not divide channels {self.channels}")
    for name in ("temporal_levels", "spatial_levels"):
      levels = getattr(self, name)
      if levels is not None and not 0 <= levels <= halvings:
        raise ValueError(f"{name} must lie in [0, {halvings}], got {levels}")
    if self.patch < 1:
      raise ValueError(f"patch must be at least 1, got {self.patch}")
    sides = halvings if self.spatial_levels is None else self.spatial_levels
    stride = self.patch * 2**sides
    for bucket in self.buckets:
      if bucket.height % stride or bucket.width % stride:
        raise ValueError(f"bucket {bucket.name}: sides are no multiples of {stride}")
      least = LEAST_SIDE[self.perceptual_net]
      if self.perceptual_weight and min(bucket.height, bucket.width) < least:
        raise ValueError(f"bucket {bucket.name}: {self.perceptual_net} needs {least} pixels a side")
    for name in ("reconstruction", "perceptual", "kl", "outlier", "gan"):
      if getattr(self, f"{name}_weight") < 0:
        raise ValueError(f"{name}_weight must not be negative")
    if self.gan_weight and self.discriminator is None:
      raise ValueError("gan_weight needs a discriminator; without one set it to 0")
    if self.judged_frames is not None and self.judged_frames < 1:
      raise ValueError(f"judged_frames must be at least 1, got {self.judged_frames}")


class TAEStage:
  """`vidgen.systems.stage.Stage` for the temporal autoencoder.

  Parameters: `autoencoder`; `discriminator` where there is one, which is to have an optimizer of
  its own (`TrainConfig.optimizers`); `perceptual`, which does not train, where its loss is on. A
  batch holds "video" [b, t, h, w, 3] in [-1, 1]; one of a single frame is of images.
  """

  def __init__(self, config: TAEConfig):
    self.config = c = config
    self.network = TAE(
      channels=c.channels,
      blocks=c.blocks,
      latent_channels=c.latent_channels,
      groups=c.groups,
      temporal=c.temporal,
      temporal_levels=c.temporal_levels,
      spatial_levels=c.spatial_levels,
      patch=c.patch,
      attention_window=c.attention_window,
      dtype=c.dtype,
      remat=c.remat,
    )
    self.perceptual = LPIPS(c.perceptual_net, c.dtype) if c.perceptual_weight else None
    self.discriminator = None
    if c.discriminator is not None:
      d = c.discriminator
      self.discriminator = PatchDiscriminator(d.channels, d.layers, d.groups, d.over, c.dtype)

  @property
  def buckets(self) -> tuple[str, ...]:
    """Names of the batch shapes."""
    return tuple(bucket.name for bucket in self.config.buckets)

  @property
  def generated(self) -> tuple[str, ...]:
    """Nothing: `sample` reconstructs."""
    return ()

  @property
  def required(self) -> tuple[str, ...]:
    """The weights of the perceptual loss."""
    return () if self.perceptual is None else ("perceptual",)

  @property
  def frozen(self) -> tuple[str, ...]:
    """The same."""
    return tuple(f"^{name}/" for name in self.required)

  @property
  def latent_channels(self) -> int:
    """Channels of the latents."""
    return self.config.latent_channels

  @property
  def temporal_stride(self) -> int:
    """Frames that become one of the latents'."""
    return self.network.temporal_stride

  @property
  def spatial_stride(self) -> int:
    """Pixels of a side that become one latent's."""
    return self.network.spatial_stride

  def init(self, rng: Key[Array, ""]) -> Params:
    """Fresh float32 parameters from one key."""
    return unboxed(self._boxed(rng))

  def logical_axes(self) -> Params:
    """A tree like the parameters, each leaf the tuple of its axes' logical names."""
    return axes_of(jax.eval_shape(self._boxed, jax.random.key(0)))

  def _boxed(self, rng: Key[Array, ""]) -> Params:
    side = self.spatial_stride
    video = jnp.zeros((1, self.temporal_stride, side, side, 3))
    networks: dict[str, tuple[Any, Any]] = {"autoencoder": (self.network, (video,))}
    if self.discriminator is not None:
      networks["discriminator"] = self.discriminator, (video,)
    if self.perceptual is not None:
      networks["perceptual"] = self.perceptual, self.perceptual.example()
    keys = jax.random.split(rng, len(networks))
    return {
      name: network.init(key, *example)["params"]
      for key, (name, (network, example)) in zip(keys, networks.items(), strict=True)
    }

  def loss(self, params: Params, batch: Batch, rng: Key[Array, " b"]) -> tuple[Array, Metrics]:
    """The weighted sum of the autoencoder's losses, plus the discriminator's.

    The gradient of the autoencoder is that of its own losses alone, that of the discriminator of
    its own alone. Metrics: "reconstruction", "perceptual", "kl", "outliers" and "generator" before
    their weights, "discriminator", the mean logits "logits_real" and "logits_fake", "psnr" (mean of
    the frames', in dB) and "latent_std", all of them means over examples.
    """
    c = self.config
    video = batch["video"].astype(jnp.float32)
    posterior = self._posterior(params, video)
    latents = posterior.mean
    if c.decoded == "sample":
      latents += jnp.exp(0.5 * posterior.logvar) * _normal(rng, latents.shape[1:])
    made = self._decoded(params, latents, frames=video.shape[1])
    error = made - video
    metrics = {
      "reconstruction": jnp.mean(jnp.abs(error) if c.reconstruction == "l1" else error**2),
      "kl": jnp.mean(_kl(posterior)) / math.prod(video.shape[1:]),
      "outliers": jnp.mean(outlier_penalty(posterior.mean, radius=c.outlier_radius)),
    }
    loss = (
      c.reconstruction_weight * metrics["reconstruction"]
      + c.kl_weight * metrics["kl"]
      + c.outlier_weight / math.prod(video.shape[2:]) * metrics["outliers"]
    )
    real, fake = video, made
    if self.perceptual is not None or self.discriminator is not None:
      real, fake = self._judged(rng, video, made)
    if self.perceptual is not None:
      pictures = (x.reshape(-1, *x.shape[2:]) for x in (real, fake))
      distance: Any = self.perceptual.apply(_still(params["perceptual"]), *pictures)
      metrics["perceptual"] = jnp.mean(distance)
      loss += c.perceptual_weight * metrics["perceptual"]
    if self.discriminator is not None:
      if c.gan_weight:
        metrics["generator"] = -jnp.mean(self._logits(_still(params["discriminator"]), fake))
        loss += c.gan_weight * metrics["generator"]
      judge = functools.partial(self._logits, {"params": params["discriminator"]})
      logits = judge(real), judge(jax.lax.stop_gradient(fake))
      metrics |= hinge(*logits)
      loss += metrics["discriminator"]
    metrics |= {"psnr": jnp.mean(_psnr(made, video)), "latent_std": jnp.mean(_std(posterior.mean))}
    return loss, metrics

  def _logits(self, variables: Any, video: Array) -> Array:
    assert self.discriminator is not None
    logits: Any = self.discriminator.apply(variables, video)
    return logits

  def _judged(self, rng: Key[Array, " b"], *videos: Array) -> tuple[Array, ...]:
    """The frames that the perceptual loss and the discriminator look at, the same of each video."""
    d, t = self.config.discriminator, videos[0].shape[1]
    count = min(self.config.judged_frames or t, t)
    if count == t:
      return videos
    draw = functools.partial(_some_frames, of=t, count=count)
    if d is not None and d.over == "clip":
      draw = functools.partial(_run_of_frames, of=t, count=count)
    index = jax.vmap(lambda key: draw(jax.random.fold_in(key, FRAMES)))(rng)
    return tuple(jax.vmap(lambda video, i: video[i])(video, index) for video in videos)

  def _posterior(self, params: Params, video: Array) -> Posterior:
    found: Any = self.network.apply({"params": params["autoencoder"]}, video, method="encode")
    return found

  def _decoded(self, params: Params, latents: Array, *, frames: int) -> Array:
    """So many frames of latents [b t h w c], not clipped; a single one is an image's."""
    method = "decode_image" if frames == 1 else "decode"
    made: Any = self.network.apply({"params": params["autoencoder"]}, latents, method=method)
    return made[:, :frames]

  def encode(self, params: Params, video: Float[Array, "b t h w 3"]) -> Float[Array, "b _ _ _ c"]:
    """Latents of a video of any length, or of images: the posterior's mean, float32, as it is."""
    return self._posterior(params, video).mean

  def decode(self, params: Params, latents: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ 3"]:
    """`temporal_stride` frames for each of the latents', clipped to [-1, 1]."""
    frames = self.temporal_stride * latents.shape[1]
    return jnp.clip(self._decoded(params, latents, frames=frames), -1, 1)

  def decode_image(
    self, params: Params, latents: Float[Array, "b t h w c"]
  ) -> Float[Array, "b t _ _ 3"]:
    """The image of each frame of latents, clipped to [-1, 1]."""
    made: Any = self.network.apply(
      {"params": params["autoencoder"]}, latents, method="decode_image"
    )
    return jnp.clip(made, -1, 1)

  def sample(
    self, params: Params, inputs: Batch, rng: Key[Array, " b"], settings: SampleSettings
  ) -> dict[str, Array]:
    """The reconstruction of "video" through the mean of the latents; nothing is drawn or set.

    Returns "latents", and "video" of as many frames as were given.
    """
    del rng, settings
    latents = self.encode(params, inputs["video"])
    made = self._decoded(params, latents, frames=inputs["video"].shape[1])
    return {"latents": latents, "video": jnp.clip(made, -1, 1)}

  def text_cut(self, batch: Batch) -> Bool[Array, " b"]:
    """No text is read, and none cut."""
    return jnp.zeros(len(batch["video"]), bool)

  def batch_spec(self, batch_size: int, bucket: str = "video") -> BatchSpec:
    """What `loss` eats, for one bucket.

    Raises:
      ConfigError: no such bucket.
    """
    shape = shape_of(self.config.buckets, bucket)
    size = (batch_size, shape.frames, shape.height, shape.width, 3)
    return {"video": array_spec(size, jnp.float32)}

  def flops(self, batch_spec: BatchSpec) -> float:
    """FLOPs of the matrix products and convolutions of one forward pass of all networks."""
    autoencoder, perceptual, judging = self._work(batch_spec)
    return autoencoder + perceptual + (3 if self.config.gan_weight else 2) * judging

  def step_flops(self, batch_spec: BatchSpec) -> float:
    """FLOPs of a train step, less than those of three forward passes.

    Backward LPIPS has only the reconstruction's half, for its parameters nothing; nor has the
    discriminator where it judges for the autoencoder.
    """
    autoencoder, perceptual, judging = self._work(batch_spec)
    clips = 2 * 3 + (2 if self.config.gan_weight else 0)
    return 3 * autoencoder + 1.5 * perceptual + clips * judging

  def _work(self, batch_spec: BatchSpec) -> list[float]:
    """FLOPs forward of the autoencoder, of LPIPS, and of the discriminator on one clip of each."""
    b, t, h, w, _ = batch_spec["video"].shape
    c, size = self.config, {"height": h, "width": w}
    decode = "decode_image" if t == 1 else "decode"
    judged = min(c.judged_frames or t, t)
    work = [sum(tae_flops(self.network, frames=t, part=p, **size) for p in ("encode", decode))]
    work.append(judged * lpips_flops(c.perceptual_net, **size) if self.perceptual else 0.0)
    d = self.discriminator
    work.append(discriminator_flops(d, frames=judged, **size) if d is not None else 0.0)
    return [b * each for each in work]


def outlier_penalty(latents: Float[Array, "b t h w c"], *, radius: float) -> Float[Array, "b t"]:
  """How far vectors of a frame's latents lie outside of `radius` standard deviations of the frame.

  The mean over positions of max(|x - mean| - radius |std|, 0), where mean and population standard
  deviation are of each channel and |.| is the length of the vector (Movie Gen, section 3.1.1).
  """
  apart = latents - jnp.mean(latents, axis=(2, 3), keepdims=True)
  squares = jnp.square(apart)
  spread = _root(jnp.mean(squares, axis=(2, 3), keepdims=True).sum(axis=-1))
  length = _root(squares.sum(axis=-1))
  return jnp.mean(jax.nn.relu(length - radius * spread), axis=(2, 3))


def _root(squares: Array) -> Array:
  """The square root, with a gradient of zero at zero."""
  some = squares > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)


def hinge(real: Float[Array, "b ..."], fake: Float[Array, "b ..."]) -> Metrics:
  """The discriminator's loss, and the mean logits of both kinds."""
  return {
    "discriminator": 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))),
    "logits_real": jnp.mean(real),
    "logits_fake": jnp.mean(fake),
  }


def _kl(posterior: Posterior) -> Float[Array, " b"]:
  """Nats of each example's posterior from the standard normal distribution."""
  variance = jnp.exp(posterior.logvar)
  terms = jnp.square(posterior.mean) + variance - 1 - posterior.logvar
  return 0.5 * jnp.sum(terms, axis=(1, 2, 3, 4))


def _psnr(made: Float[Array, "b t h w 3"], video: Float[Array, "b t h w 3"]) -> Float[Array, "b t"]:
  """Of each frame, in dB."""
  error = jnp.mean(jnp.square(jnp.clip(made, -1, 1) - video), axis=(2, 3, 4))
  return 10 * jnp.log10(4 / jnp.maximum(error, 1e-10))


def _std(latents: Float[Array, "b t h w c"]) -> Float[Array, " b"]:
  """Of each example, the mean over channels."""
  return jnp.mean(jnp.std(latents, axis=(1, 2, 3)), axis=-1)


def _still(params: Params) -> Any:
  return {"params": jax.lax.stop_gradient(params)}


def _normal(rng: Key[Array, " b"], shape: Sequence[int]) -> Float[Array, "b ..."]:
  draw = lambda key: jax.random.normal(jax.random.fold_in(key, NOISE), tuple(shape))  # noqa: E731
  return jax.vmap(draw)(rng)


def _some_frames(key: Key[Array, ""], *, of: int, count: int) -> Int[Array, " n"]:
  return jax.random.permutation(key, of)[:count]


def _run_of_frames(key: Key[Array, ""], *, of: int, count: int) -> Int[Array, " n"]:
  return jax.random.randint(key, (), 0, of - count + 1) + jnp.arange(count)
