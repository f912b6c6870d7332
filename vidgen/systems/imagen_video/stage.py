"""Each of Imagen Video's seven models as a stage: Gaussian diffusion on the pixels of a clip.

The base model makes a clip from text; a super-resolution model is also given a smaller clip, of
fewer frames or of smaller sides. All are trained apart, on real clips (Imagen Video, section 2).
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vidgen.diffusion import gaussian
from vidgen.diffusion.gaussian import CosineSchedule, LinearSchedule, LogSNR
from vidgen.diffusion.gaussian_samplers import Method, oscillating_scales, uniform_levels
from vidgen.diffusion.gaussian_samplers import sample as run_sampler
from vidgen.diffusion.guidance import guided
from vidgen.diffusion.thresholding import dynamic_threshold, static_threshold
from vidgen.errors import ConfigError
from vidgen.models.video_unet import VideoUNet, unet_flops
from vidgen.nn.partition import axes_of, unboxed
from vidgen.systems.imagen_video.config import ImagenVideoConfig
from vidgen.systems.imagen_video.distillation import Teacher
from vidgen.systems.imagen_video.resolution import shape_text
from vidgen.systems.shapes import array_spec, shape_of
from vidgen.systems.stage import Batch, BatchSpec, Metrics, Params, SampleSettings
from vidgen.systems.text import TextReader, bytes_full, encoder_params


class ImagenVideoStage:
  """`vidgen.systems.stage.Stage` for each of the seven models.

  Parameters: `network`, `text` where the text encoder is trained along, and in distillation
  `teacher`, a network, and `round`. A batch holds "video" [b, t, h, w, 3] in [-1, 1] at the size
  that the model makes; text as `systems.text` says; "fps" [b], which no model is told: each is
  trained at one rate. Packed rows hold [b, k, l] texts and "segments" [b, t], int32.

  What is sampled from is text alone, and for super-resolution "low" [b, t, h, w, 3], a small clip.
  """

  def __init__(self, config: ImagenVideoConfig):
    self.config = c = config
    self.resolution = c.resolution
    self.text = TextReader(c.text_streams, c.text_encoder)
    (self.stream,) = self.text.widths
    if c.schedule == "linear":
      self.schedule: CosineSchedule | LinearSchedule = LinearSchedule(zero_terminal=c.zero_terminal)
    else:
      self.schedule = CosineSchedule(c.logsnr_low, c.logsnr_high, zero_terminal=c.zero_terminal)
    self.network = VideoUNet(
      **{f.name: getattr(c.network, f.name) for f in dataclasses.fields(c.network)},
      text_width=self.text.widths[self.stream],
      low_channels=0 if c.role == "base" else 3,
      guidance=c.distillation is not None,
      dtype=c.dtype,
      remat=c.remat,
    )

  @property
  def buckets(self) -> tuple[str, ...]:
    """Names of the batch shapes."""
    return tuple(bucket.name for bucket in self.config.buckets)

  @property
  def generated(self) -> tuple[str, ...]:
    """What sampling makes."""
    return ("video",)

  @functools.cached_property
  def required(self) -> tuple[str, ...]:
    """A student begins as its teacher: all but what tells it the guidance scale."""
    if self.config.distillation is None:
      return ()
    names = jax.eval_shape(self.init, jax.random.key(0))["network"]
    parts = tuple(f"network/{name}" for name in names if not name.startswith("guidance"))
    return (*parts, "text") if self.text.encoder is not None else parts

  @property
  def frozen(self) -> tuple[str, ...]:
    """In distillation the teacher, the number of the round, and the text encoder."""
    return () if self.config.distillation is None else ("^teacher/", "^round$", "^text/")

  def init(self, rng: Key[Array, ""]) -> Params:
    """Fresh float32 parameters from one key."""
    return unboxed(self._boxed(rng))

  def logical_axes(self) -> Params:
    """A tree like the parameters, each leaf the tuple of its axes' logical names."""
    boxed = jax.eval_shape(self._boxed, jax.random.key(0))
    number = {"round": ()} if boxed.pop("round", None) is not None else {}  # of no network
    return axes_of(boxed) | number

  def _boxed(self, rng: Key[Array, ""]) -> Params:
    network_rng, text_rng = jax.random.split(rng)
    side = self.config.stride  # parameters do not depend on the size of the clip or the text
    z = jnp.zeros((1, 1, side, side, 3))
    given: dict[str, Any] = {
      "text": jnp.zeros((1, 1, 1, self.text.widths[self.stream])),
      "text_mask": jnp.ones((1, 1, 1), bool),
    }
    if self.config.role != "base":
      given |= {"low": z, "low_level": jnp.zeros((1, 1))}
    if self.config.distillation is not None:
      given["guidance"] = jnp.ones(1)
    network = self.network.init(network_rng, z, jnp.zeros((1, 1)), **given)["params"]
    params: dict[str, Any] = {"network": network}
    if self.text.encoder is not None:
      params["text"] = self.text.init(text_rng)
    if self.config.distillation is not None:
      params |= {"teacher": jax.tree.map(jnp.array, network), "round": jnp.zeros(())}
    return params

  def advance(self, params: Params, step: Int[Array, ""]) -> Params:
    """The parameters with which train step number `step` begins: in distillation, each round's."""
    distillation = self.config.distillation
    return params if distillation is None else distillation.advance(params, step)

  def check_train(self, train: Any) -> None:
    """Raises ConfigError where `train`, a `TrainConfig`, does not go with the distillation."""
    if self.config.distillation is not None:
      restarts = train.optimizer.restarts
      self.config.distillation.check_run(
        steps=train.steps, restarts=restarts, ema_decay=train.ema_decay
      )

  def loss(self, params: Params, batch: Batch, rng: Key[Array, " b"]) -> tuple[Array, Metrics]:
    """The mean of the weighted squared error of v over frames, pixels and the batch.

    Metrics: "loss"; "loss_time_0" to "loss_time_3", the loss within each quarter of time, as
    unbiased means. In distillation "gap", the unweighted squared distance of the student's v to its
    target, "round" and "student_steps". With a text encoder also "text_cut", as in Movie Gen's.
    """
    c = self.config
    video = batch["video"].astype(jnp.float32)
    segments = batch.get("segments")
    draws = jax.vmap(lambda key: self._draw(key, video.shape[1:]))(rng)
    conditions = self._conditions(params, batch) | {"segments": segments}
    if c.role != "base":
      conditions |= self._augmented(
        self.resolution.enlarged(self.resolution.small(video)),
        self.schedule.logsnr(_of_segments(draws["low_time"], segments)),
        draws["low_noise"],
      )
    time = _of_segments(draws["time"], segments)
    metrics = {}
    if c.distillation is None:
      level = self.schedule.logsnr(time)
      z = gaussian.diffused(video, draws["noise"], level)
      target = gaussian.velocity(video, draws["noise"], level)
    else:
      task = c.distillation.task(
        video, draws["noise"], time, draws["scale"], params["round"],
        schedule=self.schedule, teacher=self._teacher(params, conditions, batch),
      )  # fmt: skip
      time, level, z, target = task.time, task.level, task.z, task.velocity
      conditions["guidance"] = task.scale
    v = self._velocity(params["network"], z, level, conditions)
    errors = jnp.mean(jnp.square(v - target), axis=(2, 3, 4))  # [b, t]
    kind = c.loss if c.distillation is None else c.distillation.loss
    losses = errors * gaussian.velocity_weight(kind, level)
    metrics["loss"] = loss = losses.mean()
    for i in range(4):
      inside = (time >= i / 4) & ((time < (i + 1) / 4) | (i == 3))
      metrics[f"loss_time_{i}"] = 4 * jnp.mean(losses * inside)
    if c.distillation is not None:
      metrics |= {
        "gap": errors.mean(),
        "round": params["round"],
        "student_steps": c.distillation.student_steps(params["round"]),
      }
    if self.text.encoder is not None:
      metrics["text_cut"] = jnp.mean(self.text_cut(batch) | bytes_full(batch))
    return loss, metrics

  def _draw(self, rng: Key[Array, ""], shape: Sequence[int]) -> dict[str, Array]:
    """All that is random about an example: numbers a frame, of which its segment takes one."""
    noise, time, low_noise, low_time, scale = jax.random.split(rng, 5)
    return {
      "noise": jax.random.normal(noise, tuple(shape)),
      "time": jax.random.uniform(time, shape[:1]),
      "low_noise": jax.random.normal(low_noise, tuple(shape)),
      "low_time": jax.random.uniform(low_time, shape[:1]),
      "scale": jax.random.uniform(scale),
    }

  def _conditions(self, params: Params, batch: Batch) -> dict[str, Any]:
    """What the network is told of the text; texts of rows with one get their axis k."""
    text, masks = self.text.read(encoder_params(params), batch)
    text, mask = text[self.stream], masks[self.stream]
    if text.ndim == 3:
      text, mask = text[:, None], mask[:, None]
    return {"text": text, "text_mask": mask}

  def _augmented(
    self, low: Float[Array, "b t h w c"], level: LogSNR, noise: Float[Array, "b t h w c"]
  ) -> dict[str, Array]:
    """The small clip, enlarged, with noise of that level, and the level."""
    return {"low": gaussian.diffused(low, noise, level), "low_level": level.angle}

  def _velocity(self, network: Params, z: Array, level: LogSNR, conditions: Any) -> Array:
    out: Any = self.network.apply({"params": network}, z, level.angle, **conditions)
    return out

  def _teacher(self, params: Params, conditions: dict[str, Any], batch: Batch) -> Teacher:
    """The teacher's v: with and without text in the first round, told the scale in the others."""
    null = {**conditions, **self._conditions(params, self.text.without(batch))}
    network = params["teacher"]

    def student(z: Array, level: LogSNR, scale: Array) -> Array:
      return self._velocity(network, z, level, {**conditions, "guidance": scale})

    def both(z: Array, level: LogSNR, scale: Array) -> Array:
      off = {"guidance": jnp.ones_like(scale)}
      return guided(
        lambda z, level, conditions: self._velocity(network, z, level, conditions),
        conditional=conditions | off,
        null=null | off,
        scale=scale,
      )(z, level)

    return Teacher(guided=both, student=student)

  def sample(
    self, params: Params, inputs: Batch, rng: Key[Array, " b"], settings: SampleSettings
  ) -> dict[str, Array]:
    """Clips for the text of `inputs`, and of its small clip "low" if this is super-resolution.

    Returns "video" [b, t, h, w, 3], and the same as "latents": there is no autoencoder. With
    guidance both passes run at every step; a distilled model has one, and is told the scale.

    Raises:
      ConfigError: `settings` ask for what cannot be made, or not from this small clip.
    """
    c, sampler = self.config, self.config.sampler
    conditions = self._conditions(params, inputs)
    shape = c.sample_shape(settings)
    if c.role != "base":
      shape = self._shape_from(inputs["low"].shape[1:4], settings)
      low = self.resolution.enlarged(inputs["low"])
      level = LogSNR(jnp.full(low.shape[:2], np.log(sampler.augmentation_snr), jnp.float32))
      conditions |= self._augmented(low, level, self._noise(rng, low.shape[1:], "low"))
    scales = np.full(settings.steps, settings.guidance_scale, np.float32)
    if sampler.guidance == "oscillating":
      scales = oscillating_scales(
        settings.steps, high=settings.guidance_scale, low=sampler.low_scale, first=sampler.first
      )
    if c.distillation is not None:
      c.distillation.check_sampling(steps=settings.steps, scales=set(scales.tolist()))
    predict = self._predictor(params, inputs, conditions, settings)

    def denoise(z: Array, level: LogSNR, scale: Array) -> Array:
      x = gaussian.data_from_velocity(predict(z, _of_frames(level, z), scale), z, level)
      if sampler.threshold == "static":
        return static_threshold(x)
      if sampler.threshold == "dynamic":
        return dynamic_threshold(x, percentile=sampler.percentile)
      return x

    video = run_sampler(
      denoise,
      self._noise(rng, (*shape, 3), "video"),
      jax.vmap(lambda key: jax.random.fold_in(key, self._number("steps")))(rng),
      levels=uniform_levels(self.schedule, steps=settings.steps),
      scales=jnp.asarray(scales),
      method=self._method,
    )
    return {"latents": video, "video": self.decode(params, video)}

  @property
  def _method(self) -> Method:
    """The sampler's, or for a student the one that it was trained for."""
    sampler = self.config.sampler
    name = sampler.method
    if self.config.distillation is not None:
      name = self.config.distillation.sampler
    corrected = self.config.distillation is None
    return Method(name, gamma=sampler.gamma, langevin=sampler.langevin if corrected else 0.0)

  def _predictor(self, params: Params, inputs: Batch, conditions: Any, settings: SampleSettings):
    """v of (z, level, scale), after guidance."""
    network = params["network"]
    if self.config.distillation is not None:
      return lambda z, level, scale: self._velocity(
        network, z, level, conditions | {"guidance": jnp.full(len(z), scale)}
      )
    if settings.guidance_scale == 1.0 and self.config.sampler.guidance == "constant":
      return lambda z, level, scale: self._velocity(network, z, level, conditions)
    null = conditions | self._conditions(params, self.text.without(inputs))
    return lambda z, level, scale: guided(
      lambda z, level, conditions: self._velocity(network, z, level, conditions),
      conditional=conditions,
      null=null,
      scale=scale,
    )(z, level)

  def _number(self, purpose: str) -> int:
    """Models of one cascade are given one key a sample, and must not draw the same noise."""
    return zlib.crc32(f"{purpose} {self.config.role} {shape_text(self.config.clip)}".encode())

  def _noise(self, rng: Key[Array, " b"], shape: Sequence[int], purpose: str) -> Array:
    number = self._number(purpose)
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), tuple(shape)))(
      rng
    )

  def _shape_from(self, low: Sequence[int], settings: SampleSettings) -> tuple[int, int, int]:
    """t, h and w of what is made from a small clip of `low`."""
    shape = self.resolution.large_shape(*low)
    asked = (settings.frames, settings.height, settings.width)
    if any(a not in (None, s) for a, s in zip(asked, shape, strict=True)):
      raise ConfigError(
        f"settings ask for {asked} (t, h, w), but a clip of {shape_text(low)} becomes "
        f"{shape_text(shape)}"
      )
    try:
      self.config.check_sides(*shape[1:])
    except ValueError as error:
      raise ConfigError(f"samples of {shape_text(shape)} cannot be made: {error}") from error
    return shape

  def decode(self, params: Params, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Pixels clipped to [-1, 1]."""
    del params
    return jnp.clip(latents, -1, 1)

  def text_cut(self, batch: Batch) -> Bool[Array, " b"]:
    """Which rows have a text of more words than the text encoder reads; none of embeddings."""
    return self.text.cut(batch)

  def batch_spec(self, batch_size: int, bucket: str = "video") -> BatchSpec:
    """What `loss` eats, for one bucket.

    Raises:
      ConfigError: no such bucket.
    """
    shape = shape_of(self.config.buckets, bucket)
    frames = shape.frames + shape.images
    spec = {"video": array_spec((batch_size, frames, shape.height, shape.width, 3), jnp.float32)}
    if shape.packed:
      spec |= self.text.spec(batch_size, shape.slots)
      spec["segments"] = array_spec((batch_size, frames), jnp.int32)
    else:
      spec |= self.text.spec(batch_size)
    return {**spec, "fps": array_spec((batch_size,), jnp.float32)}

  def input_spec(self, batch_size: int) -> BatchSpec:
    """What is sampled from: a text, and the small clip of what is sampled."""
    spec = {**self.text.spec(batch_size), "fps": array_spec((batch_size,), jnp.float32)}
    if self.config.role != "base":
      small = self.resolution.small_shape(*self.config.clip)
      spec["low"] = array_spec((batch_size, *small, 3), jnp.float32)
    return spec

  def inputs_of(self, batch: Batch) -> Batch:
    """What the clips of a batch of the first bucket would be sampled from."""
    first = self.config.buckets[0]
    inputs = {name: batch[name] for name in (*self.text.names, "fps")}
    if first.packed:  # the clip's caption is the first
      inputs |= {name: batch[name][:, 0] for name in self.text.names}
    if self.config.role != "base":
      inputs["low"] = self.resolution.small(batch["video"][:, : first.frames])
    return inputs

  def evaluations(self, settings: SampleSettings) -> int:
    """How often the network is evaluated for a clip."""
    sampler = self.config.sampler
    off = settings.guidance_scale == 1.0 and sampler.guidance == "constant"
    passes = 1 if off or self.config.distillation is not None else 2
    twice = self._method.name == "heun" or self._method.langevin > 0
    return settings.steps * passes * (2 if twice else 1)

  def flops(self, batch_spec: BatchSpec) -> float:
    """FLOPs of the products of one forward pass over such a batch."""
    b, t, h, w, _ = batch_spec["video"].shape
    name = "text" if self.text.encoder is not None else self.stream
    captions = batch_spec[name].shape[1] if "segments" in batch_spec else 1
    network = unet_flops(
      self.network,
      frames=t,
      height=h,
      width=w,
      text_length=self.text.lengths[self.stream],
      captions=captions,
      batch=b,
    )
    return network + self.text.flops(batch_spec)

  def step_flops(self, batch_spec: BatchSpec) -> float:
    """FLOPs of a train step: in distillation the teacher is evaluated twice."""
    passes = 3 if self.config.distillation is None else 5
    return passes * self.flops(batch_spec)


def _of_segments(
  drawn: Float[Array, "b t"], segments: Int[Array, "b t"] | None
) -> Float[Array, "b t"]:
  """The number of each frame's segment, of numbers that were drawn for t of them."""
  if segments is None:
    return jnp.broadcast_to(drawn[:, :1], drawn.shape)
  return jnp.take_along_axis(drawn, segments, axis=1)


def _of_frames(level: LogSNR, z: Float[Array, "b t h w c"]) -> LogSNR:
  """The level of each frame, where it is one an example."""
  return LogSNR(jnp.broadcast_to(level.value[:, None], z.shape[:2]))
