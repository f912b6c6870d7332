"""Stages of a few numbers that make small clips from text and larger ones from those, and runs of
them; for tests of what chains stages."""

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidgen.config import plain
from vidgen.systems import STAGES
from vidgen.systems.stage import ArraySpec
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import resolve

BASE, TSR, SSR = (16, 3, 5), (32, 3, 5), (32, 6, 10)  # frames, height, width
AXES = ("batch", "frames", "height", "width_pixels", "channels")
NAME = "test/cascade"


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
  shape: tuple[int, int, int] = BASE
  low: tuple[int, int, int] | None = None
  text_length: int = 24


class CascadeStage:
  """The clip before it, its frames and pixels repeated, a colour of the text, and noise."""

  buckets, generated, required, frozen = ("video",), ("video",), (), ()

  def __init__(self, config):
    self.config = config

  def init(self, rng):
    return {"colours": jax.random.normal(rng, (260, 3))}

  def logical_axes(self):
    return {"colours": (None, None)}

  def loss(self, params, batch, rng):
    made = self.sample(params, self.inputs_of(batch), rng, None)["latents"]
    return jnp.mean((made - batch["video"]) ** 2), {}

  def sample(self, params, inputs, rng, settings):
    shape = (*self.config.shape, 3)
    mask = inputs["text_mask"][..., None]
    colour = (params["colours"][inputs["text"]] * mask).sum(1) / mask.sum(1)
    latents = jnp.broadcast_to(colour[:, None, None, None], (len(colour), *shape))
    keys = jax.vmap(lambda key: jax.random.fold_in(key, sum(shape)))(rng)  # not another stage's
    latents = latents + jax.vmap(lambda key: 0.5 * jax.random.normal(key, shape))(keys)
    if self.config.low is not None:
      low = inputs["low"]
      for axis, (small, large) in enumerate(zip(self.config.low, shape, strict=False), start=1):
        low = jnp.repeat(low, large // small, axis=axis)
      latents = 0.5 * latents + low
    if settings is not None:
      latents = latents + 0.01 * settings.steps
    return {"latents": latents, "video": self.decode(params, latents)}

  def decode(self, params, latents):
    return jnp.clip(latents, -1, 1)

  def text_cut(self, batch):
    return jnp.zeros(len(batch["text"]), bool)

  def batch_spec(self, batch_size, bucket="video"):
    c, b = self.config, batch_size
    return {
      "video": ArraySpec((b, *c.shape, 3), jnp.float32, AXES),
      "text": ArraySpec((b, c.text_length), jnp.int32, ("batch", "text")),
      "text_mask": ArraySpec((b, c.text_length), jnp.bool_, ("batch", "text")),
    }

  def input_spec(self, batch_size):
    spec = self.batch_spec(batch_size)
    del spec["video"]
    if self.config.low is not None:
      spec["low"] = ArraySpec((batch_size, *self.config.low, 3), jnp.float32, AXES)
    return spec

  def inputs_of(self, batch):
    """Every so many frames, and means of pixels."""
    inputs = {name: batch[name] for name in ("text", "text_mask")}
    if self.config.low is not None:
      (t, h, w), low = self.config.shape, self.config.low
      video = batch["video"][:, :: t // low[0]]
      blocks = video.reshape(-1, low[0], low[1], h // low[1], low[2], w // low[2], 3)
      inputs["low"] = blocks.mean(axis=(3, 5))
    return inputs

  def flops(self, batch_spec):
    return 1.0


def register(patch):
  """Makes the stage known by its name; `patch` is pytest's monkeypatch, or one like it."""
  patch.setitem(STAGES, NAME, ("cascade_run", "CascadeConfig", "CascadeStage"))


def write_run(folder, *, shape, fps, low=None, steps=(5,), mesh=None, **inputs):
  """Saves checkpoints of the stage, of other parameters at each step; returns the folder."""
  fields = {"shape": shape, "low": low}
  frames, height, width = shape
  bucket = {"name": "video", "frames": frames, "height": height, "width": width, "fps": fps}
  experiment = resolve(
    ConfigDict(
      {
        "name": folder.name,
        "stage": {"name": NAME, "fields": fields},
        "inputs": {"buckets": [bucket], "text_length": 24, **inputs},
        "train": {"batch_size": 8},
        "sample": {"steps": 3, "guidance_scale": 2.0, "linear_steps": 6},
        **({"mesh": mesh} if mesh else {}),
      }
    )
  )
  checkpoints = Checkpoints(folder / "checkpoints")
  for step in steps:
    params = CascadeStage(CascadeConfig(shape, low)).init(jax.random.key(step))
    state = {"params": params, "ema": params, "opt_state": {}, "step": jnp.int32(step)}
    about = {"encoders": {name: {} for name in experiment.inputs.encoders}}
    data = {"position": step, "description": about}
    checkpoints.save(step, state, data, plain(experiment))
  checkpoints.close()
  return folder
