"""Folders of small clips, pictures and sounds, and networks small enough to score them at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from fixtures.random_weights import draw
from PIL import Image

from vidgen.evals.extractors import PixelExtractor
from vidgen.media.audio import encode_wav
from vidgen.media.video import write_mp4

WIDTH = 5  # of features


def clips(count: int, *, frames: int = 10, size: int = 16, seed: int = 0) -> np.ndarray:
  """Smooth moving blobs, uint8 [n, t, h, w, 3]."""
  rng = np.random.default_rng(seed)
  at, speed, colour = (
    rng.random((count, 2)),
    rng.normal(0, 0.05, (count, 2)),
    rng.random((count, 3)),
  )
  grid = (np.arange(size) + 0.5) / size
  place = at[:, None] + speed[:, None] * np.arange(frames)[None, :, None]
  y, x = (np.exp(-(((grid - place[..., k, None]) / 0.2) ** 2)) for k in (0, 1))
  blob = y[..., :, None] * x[..., None, :]
  return (blob[..., None] * colour[:, None, None, None] * 255).astype(np.uint8)


def write_clips(folder, videos, *, fps: float = 8.0, name=lambda i: f"{i:04}"):
  """An MP4 each, nearly without loss."""
  folder.mkdir(parents=True, exist_ok=True)
  for i, video in enumerate(videos):
    write_mp4(folder / f"{name(i)}.mp4", video, fps=fps, crf=1)
  return folder


def write_sequences(folder, videos):
  """A folder of PNG files each, without loss."""
  for i, video in enumerate(videos):
    (folder / f"{i:04}").mkdir(parents=True)
    for t, frame in enumerate(video):
      Image.fromarray(frame).save(folder / f"{i:04}" / f"{t}.png")
  return folder


def write_sounds(folder, count: int, *, seconds: float = 1.0, seed: int = 0):
  """Tones in noise, 16 kHz."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  time = np.arange(int(seconds * 16_000)) / 16_000
  for i in range(count):
    sound = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2000) * time) + 0.05 * rng.normal(
      size=len(time)
    )
    (folder / f"{i:03}.wav").write_bytes(encode_wav(sound.astype(np.float32), sample_rate=16_000))
  return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithText(PixelExtractor):
  """In place of CLIP: a colour's name is near pictures of that colour."""

  def text(self, captions):
    named = {"red": 0, "green": 1, "blue": 2}
    rows = [[0.01 + caption.split().count(name) for name in named] for caption in captions]
    return {"text_embeds": np.array(rows, np.float32)}


@functools.cache
def colour_extractor(name: str = "clip") -> WithText:
  """The mean colour of each picture."""

  def run(params, media):
    colour = media.astype(jnp.float32).mean(axis=(1, 2)) / 255 + 1e-4
    return dict.fromkeys(("image_embeds", "cls"), colour)

  facts = {"crop": "none", "value_range": [0.0, 1.0]}
  return WithText(name, "colours", jax.jit(run), {}, facts, 4, 4)


@functools.cache
def extractor(name: str = "i3d", *, seed: int = 0, batch_size: int = 4) -> PixelExtractor:
  """Two random layers over coarse pixels and their change in time, in place of a network."""
  rank = 4 if name in ("inception", "clip") else 5
  inputs = 8 * 8 * 3 * (2 if rank == 5 else 1)
  params = {
    "in": draw("in", (inputs, 32), scale=inputs**-0.5, seed=seed),
    "out": draw("out", (32, WIDTH), seed=seed),
  }

  def run(params, media):
    x = media.astype(jnp.float32) / 127.5 - 1
    x = jax.image.resize(x, (*x.shape[:-3], 8, 8, 3), "linear")
    if rank == 5:
      x = jnp.concatenate([x.mean(axis=1), jnp.abs(jnp.diff(x, axis=1)).mean(axis=1)], axis=-1)
    x = jnp.tanh(x.reshape(len(x), -1) @ params["in"]) @ params["out"]
    return dict.fromkeys(("logits", "2048", "logits_unbiased", "image_embeds"), x)

  facts = {"resize": "linear", "value_range": [-1.0, 1.0]}
  return PixelExtractor(name, f"random {seed}", jax.jit(run), params, facts, batch_size, rank)


def load_stand_in(path, *, convention: str = "plain", batch_size: int = 4) -> PixelExtractor:
  """As a loader of the registry: the file's text is the seed of `extractor`."""
  from vidgen.errors import ConfigError

  if convention != "plain":
    raise ConfigError(f"unknown convention {convention!r}; known are plain")
  return extractor(seed=int(path.read_text()), batch_size=batch_size)
