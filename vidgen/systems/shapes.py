"""The shapes that stages train on."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from vidgen.errors import ConfigError
from vidgen.systems.stage import ArraySpec


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """One batch shape, in pixels. An image is a clip of one frame."""

  name: str
  frames: int
  height: int
  width: int


class Packing:
  """Of a row that may hold `images` independent images behind the frames of its clip.

  With images, or with `captions`, a row has that many captions (0: one and one an image), and the
  caption of frame f is that of the number of its segment.
  """

  images: int
  captions: int

  @property
  def packed(self) -> bool:
    """Whether rows say which frames belong together, and have a slot for each caption."""
    return bool(self.images or self.captions)

  @property
  def slots(self) -> int:
    """The captions that a packed row has room for."""
    return self.captions or 1 + self.images


@dataclasses.dataclass(frozen=True)
class PackedShape(Packing, BatchShape):
  """A batch shape of such rows."""

  images: int = 0
  captions: int = 0


@dataclasses.dataclass(frozen=True)
class LatentConfig:
  """What an autoencoder makes of a clip: `channels`, and the stride in time and in space."""

  channels: int = 16
  temporal_stride: int = 8
  spatial_stride: int = 8


def check_shapes(buckets: Sequence[BatchShape]) -> None:
  """Raises ValueError where there are none, or two of one name."""
  names = [bucket.name for bucket in buckets]
  if not names:
    raise ValueError("buckets must not be empty")
  if len(set(names)) != len(names):
    raise ValueError(f"bucket names {names} are not unique")


S = TypeVar("S", bound=BatchShape)


def shape_of(buckets: Sequence[S], name: str) -> S:
  """The one of that name.

  Raises:
    ConfigError: there is none.
  """
  for bucket in buckets:
    if bucket.name == name:
      return bucket
  known = ", ".join(bucket.name for bucket in buckets)
  raise ConfigError(f"unknown bucket {name!r}; known are {known}")


def array_spec(shape: tuple[int, ...], dtype: Any) -> ArraySpec:
  """An array of a batch: split over devices along its first axis only."""
  return ArraySpec(shape, dtype, ("batch", *(None,) * (len(shape) - 1)))
