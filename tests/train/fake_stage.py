"""A stage of a few hundred parameters, for tests of the loop: predicts a video from its text."""

import dataclasses

import jax
import jax.numpy as jnp

from vidgen.nn.partition import constrain
from vidgen.systems.stage import ArraySpec


@dataclasses.dataclass(frozen=True)
class FakeConfig:
  frames: int = 2
  size: int = 4
  text_length: int = 8
  width: int = 16
  layers: int = 2


class FakeStage:
  """A stack of linear layers over an embedded caption, plus noise by key, to the pixels."""

  def __init__(self, config: FakeConfig):
    self.config = config

  @property
  def buckets(self):
    return ("video", "image")

  @property
  def generated(self):
    return ("video",)

  @property
  def required(self):
    return ()

  @property
  def frozen(self):
    return ()

  def init(self, rng):
    c = self.config
    keys = jax.random.split(rng, 4)
    pixels = c.size * c.size * 3
    return {
      "embedding": 0.1 * jax.random.normal(keys[0], (260, c.width)),
      "blocks": {
        "kernel": jax.random.normal(keys[1], (c.layers, c.width, c.width)) / c.width**0.5,
        "bias": jnp.zeros((c.layers, c.width)),
      },
      "head": {
        "kernel": jax.random.normal(keys[2], (c.width, pixels)) / c.width**0.5,
        "bias": jnp.zeros((pixels,)),
      },
    }

  def logical_axes(self):
    return {
      "embedding": (None, "embed"),
      "blocks": {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "embed")},
      "head": {"kernel": ("embed", None), "bias": (None,)},
    }

  def predict(self, params, inputs):
    mask = inputs["text_mask"][..., None]
    x = jnp.sum(params["embedding"][inputs["text"]] * mask, 1) / jnp.maximum(mask.sum(1), 1)

    # Without this, XLA (jax 0.10.2, CPU) makes wrong gradients on a 2 x 2 x 2 mesh: as in the real
    # networks, the stream between blocks has a layout of its own.
    x = constrain(x, axes=("batch", None))

    def block(x, layer):
      x = x + jnp.tanh(x @ layer["kernel"] + layer["bias"])
      return constrain(x, axes=("batch", None)), None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]

  def loss(self, params, batch, rng):
    flat = self.predict(params, batch)
    video = batch["video"].reshape(*batch["video"].shape[:2], -1)
    noise = jax.vmap(lambda key: jax.random.normal(key, flat.shape[1:]))(rng)
    error = jnp.mean((flat[:, None] + 0.01 * noise[:, None] - video) ** 2, axis=(1, 2))
    return jnp.mean(error), {"noise": jnp.mean(noise)}

  def sample(self, params, inputs, rng, settings):
    c = self.config
    frame = self.predict(params, inputs).reshape(-1, 1, c.size, c.size, 3)
    latents = jnp.repeat(frame, c.frames, axis=1)
    latents = latents + jax.vmap(lambda k: 0.1 * jax.random.normal(k, latents.shape[1:]))(rng)
    return {"latents": latents, "video": self.decode(params, latents)}

  def decode(self, params, latents):
    return jnp.clip(latents, -1, 1)

  def text_cut(self, batch):
    return jnp.zeros(len(batch["text"]), bool)

  def batch_spec(self, batch_size, bucket="video"):
    c, b = self.config, batch_size
    frames = c.frames if bucket == "video" else 1
    axes = ("batch", "frames", "height", "width_pixels", "channels")
    return {
      "video": ArraySpec((b, frames, c.size, c.size, 3), jnp.float32, axes),
      "text": ArraySpec((b, c.text_length), jnp.int32, ("batch", "text")),
      "text_mask": ArraySpec((b, c.text_length), jnp.bool_, ("batch", "text")),
      "fps": ArraySpec((b,), jnp.float32, ("batch",)),
    }

  def flops(self, batch_spec):
    c = self.config
    each = c.layers * c.width**2 + c.width * c.size**2 * 3
    return 2.0 * batch_spec["text"].shape[0] * each
