"""Rows that hold more than one sample: a clip, and independent images behind its frames.

For joint training on clips and images, as in Video Diffusion Models (packs of clips and images) and
Imagen Video (packs of images alone). A row's "segments", int32 [t], number what its frames are of:
0 the clip, 1 and up the images. The captions of a row, [k, l], are in the same order; what is
behind them is zero, with no token in its mask. Images have positions of their own, of which row p
takes the p-th part.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from vidgen.inputs.config import Bucket, InputConfig

Texts = Mapping[str, np.ndarray]


def image_bucket(bucket: Bucket) -> Bucket:
  """What a bucket's images are drawn as: a bucket of single frames, of another name."""
  return Bucket(
    name=f"{bucket.name}/images",
    subset=bucket.image_subset,
    frames=1,
    height=bucket.height,
    width=bucket.width,
    fps=bucket.fps,
    cover=bucket.cover,
  )


def with_image_buckets(config: InputConfig) -> InputConfig:
  """The config with those of all its buckets that have images."""
  more = [image_bucket(bucket) for bucket in config.buckets if bucket.images]
  return dataclasses.replace(config, buckets=(*config.buckets, *more)) if more else config


def image_positions(
  positions: Int64[np.ndarray, " b"], *, images: int
) -> Int64[np.ndarray, "b images"]:
  """The positions, in the order of its images, of those that each row takes."""
  return positions[:, None] * images + np.arange(images)


def segments(rows: int, *, bucket: Bucket) -> Int32[np.ndarray, "b t"]:
  """What the frames of each of so many rows are of."""
  numbers = np.maximum(np.arange(bucket.frames + bucket.images) - bucket.frames + 1, 0)
  return np.tile(numbers.astype(np.int32), (rows, 1))


def join_frames(
  clips: UInt8[np.ndarray, "b t h w 3"], images: UInt8[np.ndarray, "bk 1 h w 3"]
) -> UInt8[np.ndarray, "b tk h w 3"]:
  """Rows of clips, each with its images behind it; `images` are those of one row after another."""
  return np.concatenate([clips, images.reshape(len(clips), -1, *clips.shape[2:])], axis=1)


def join_texts(clips: Texts, images: Texts | None, *, slots: int) -> dict[str, np.ndarray]:
  """Texts [b, ...] of clips and [b * images, ...] of their images as [b, slots, ...]."""
  joined = {}
  for name, first in clips.items():
    joined[name] = whole = np.zeros((len(first), slots, *first.shape[1:]), first.dtype)
    whole[:, 0] = first
    if images is not None:
      rest = images[name].reshape(len(first), -1, *first.shape[1:])
      whole[:, 1 : 1 + rest.shape[1]] = rest
  return joined
