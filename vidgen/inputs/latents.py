"""An autoencoder's latents beside a data set: written once, read in place of clips.

  OUT/<bucket>/<split>/identity.json     whose they are, and of what clips
  OUT/<bucket>/<split>/<shard>.arrays    one array [t, h, w, c] for each sample, normalised

They are in the autoencoder's dtype. An `array_cache`, of which each array says of which sample it
is, and each file which samples cannot be used, and why: those are replaced as they are on the fly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.config import differences, plain
from vidgen.errors import ConfigError, DataError
from vidgen.inputs.array_cache import ArrayCache, CacheKind, check_identity, read_identity
from vidgen.inputs.config import AutoencoderSource, Bucket, InputConfig
from vidgen.inputs.decode import TooShort
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Source
from vidgen.inputs.storage import ShardFiles

FOLDER = "latents"  # in a data set, unless another is named
KEPT_OPEN = 128  # files of all buckets, of which there may be twenty
KIND = CacheKind(
  name="latents",
  remedy="run `vidgen data latents --cache` again",
  keys="config.inputs",
  fields={"autoencoder": dict, "clip": dict, "shape": list},
)


def latents_folder(root: Path, *, bucket: str, split: str) -> Path:
  """Where the latents of a bucket lie.

  Raises:
    ConfigError: the bucket's name is no name of a folder.
  """
  if bucket in ("", ".", "..") or set(bucket) & {"/", "\\", "\0"}:
    raise ConfigError(f"config.inputs.buckets: latents of {bucket!r} need a name without slashes")
  return root / bucket / split


def clip_identity(bucket: Bucket, config: InputConfig) -> dict[str, Any]:
  """What of a config decides which frames a sample gives, and whether it is a bad one."""
  spread = {"rate": bucket.rate} if bucket.rate != "fixed" else {}
  return {
    "frames": bucket.frames,
    "height": bucket.height,
    "width": bucket.width,
    "fps": bucket.fps,
    **spread,
    "temporal_crop": config.temporal_crop,
    "spatial_crop": config.spatial_crop,
    "limits": plain(config.limits),
    "whole_clips": config.cache_bytes > 0,  # decides which damaged clips are found out
  }


def latents_identity(
  bucket: Bucket, config: InputConfig, *, autoencoder: Mapping[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
  """What the latents of a bucket hang on; `shape` [t h w c] is that of one sample's."""
  clip = clip_identity(bucket, config)
  return {"autoencoder": dict(autoencoder), "clip": clip, "shape": list(shape)}


def sample_bytes(name: tuple[str, str]) -> bytes:
  """What the hash of an array's source is over: the sample's shard and key."""
  return "\n".join(name).encode("utf-8", "backslashreplace")


def problem_fields(error: BadSample) -> list[Any]:
  """A bad sample, for JSON; its shard and key are known where it is read again."""
  return [error.reason, error.duration if isinstance(error, TooShort) else None]


def _problem(fields: list[Any]) -> BadSample:
  reason, duration = fields
  return BadSample(reason) if duration is None else TooShort(reason, duration=duration)


class CachedLatents(ArrayCache):
  """The latents of one source's samples, by their number; sent to workers small.

  Raises:
    DataError: a file is missing, damaged, of other shards than there are, or made otherwise.
  """

  def __init__(
    self, folder: Path, source: Source, *, identity: Mapping[str, Any], files: ShardFiles
  ):
    self._source, self._shape = source, tuple(identity["shape"])
    super().__init__(folder, source, identity=identity, kind=KIND, files=files)

  def check_whole(self, indices: np.ndarray | None) -> None:
    """Raises DataError where one of these samples (None: of all) was never encoded."""
    for number, part in enumerate(self._parts):
      shard = self.shard(number)
      known = shard.there
      known[[int(row) for row in shard.about["bad"]]] = True
      rows = np.arange(part.samples)
      if indices is not None:
        first, last = np.searchsorted(indices, [part.start, part.start + part.samples])
        rows = indices[first:last] - part.start
      if missing := int((~known[rows]).sum()):
        raise DataError(f"{shard.path}: has nothing for {missing} samples; {KIND.remedy}")

  def __call__(self, index: int) -> np.ndarray:
    """The latents [t, h, w, c] of sample `index`, normalised.

    Raises:
      BadSample: it has none, since it cannot be used; not named yet.
      DataError: they are damaged, or missing.
    """
    shard, row = self.place(index)
    fields = shard.about["bad"].get(str(row))
    if fields is not None:
      raise _problem(fields)
    array = shard.read(row, source=sample_bytes(self._source.name(index)))
    if array.shape != self._shape:
      raise DataError(f"{shard.path}: sample {row}: latents {array.shape}, not {self._shape}")
    return array


def open_latents(
  config: InputConfig,
  directory: str | Path,
  *,
  sources: Mapping[str, Source],
  split: str,
  autoencoder: Mapping[str, Any],
) -> dict[str, CachedLatents]:
  """The cached latents of some buckets, by their names; `sources` have their samples.

  Raises:
    DataError: they are missing, of other data, clips or bucket, or of another autoencoder than the
      one of this identity.
  """
  found, files = {}, ShardFiles(KEPT_OPEN)
  for bucket in config.buckets:
    if bucket.name in sources:
      folder = latents_folder(Path(directory) / config.latents, bucket=bucket.name, split=split)
      wanted = {"autoencoder": dict(autoencoder), "clip": clip_identity(bucket, config)}
      identity = check_identity(folder, wanted, kind=KIND)
      source = sources[bucket.name]
      found[bucket.name] = CachedLatents(folder, source, identity=identity, files=files)
  return found


def cached_autoencoder(config: InputConfig, directory: str | Path) -> dict[str, Any]:
  """The identity of the autoencoder whose latents are cached, as the cache says it.

  Raises:
    DataError: there are no latents, or the config says otherwise how they are made.
  """
  source = config.autoencoder or AutoencoderSource()
  bucket = config.buckets[0].name
  folder = latents_folder(Path(directory) / config.latents, bucket=bucket, split="train")
  found = read_identity(folder, kind=KIND)["autoencoder"]
  stated = {"dtype": source.dtype, "frames": source.frames}
  if lines := differences({name: found.get(name) for name in stated}, stated):
    raise DataError(
      f"{folder}: these latents were made otherwise (there -> wanted): {'; '.join(lines)}; change "
      "config.inputs.autoencoder, or make others"
    )
  return found
