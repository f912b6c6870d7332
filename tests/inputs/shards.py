"""Small real shards for the tests of this room: MP4 by PyAV, tars by tarfile."""

import hashlib
import io
import json
import tarfile
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def frame(level: int, *, size=(32, 32)) -> np.ndarray:
  """One flat gray frame (height, width) = size."""
  return np.full((*size, 3), level, np.uint8)


def mp4(
  frames,
  *,
  fps=8,
  stamps=None,
  time_base=None,
  codec="libx264",
  pix_fmt="yuv420p",
  options=None,
  rotate=0,
  faststart=False,
) -> bytes:
  """An MP4 of RGB frames; `stamps` are presentation times in ticks of `time_base`."""
  time_base = time_base or Fraction(1, fps)
  with tempfile.TemporaryDirectory() as folder:  # faststart rewrites the file, so it needs one
    path = Path(folder) / "clip.mp4"
    flags = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=flags) as out:
      preset = {"preset": "ultrafast"} if codec in ("libx264", "libx265") else {}
      stream = out.add_stream(codec, rate=fps, options={**preset, **(options or {})})
      stream.height, stream.width = frames[0].shape[:2]
      stream.pix_fmt = pix_fmt
      stream.codec_context.time_base = time_base
      if rotate:
        stream.set_display_rotation(rotate)
      for number, array in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(array, format="rgb24")
        picture.pts = number if stamps is None else stamps[number]
        picture.time_base = time_base
        out.mux(stream.encode(picture))
      out.mux(stream.encode(None))
    return path.read_bytes()


def jpeg(array: np.ndarray, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "JPEG", quality=95, **options)
  return buffer.getvalue()


def write_tar(path: Path, members) -> None:
  """`members`: (name, bytes) in order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def clip_members(key: str, number: int, *, frames=16, size=(32, 32)):
  """A clip that can be told from others: gray of level 4 * number + frame."""
  video = mp4([frame((4 * number + 2 * i) % 230 + 10, size=size) for i in range(frames)])
  info = json.dumps({"key": key, "status": "success"}).encode()
  return [(f"{key}.mp4", video), (f"{key}.txt", f"clip {number}".encode()), (f"{key}.json", info)]


def video_set(root: Path, *, shards=2, per_shard=6, subset="video", split="train", **clip) -> Path:
  """A data set of `shards` tars with a parquet each; keys are 5 digits of shard and 4 of sample."""
  for shard in range(shards):
    keys = [f"{shard:05d}{i:04d}" for i in range(per_shard)]
    members = []
    for i, key in enumerate(keys):
      members += clip_members(key, shard * per_shard + i, **clip)
    write_tar(root / subset / split / f"{shard:05d}.tar", members)
    write_parquet(root / subset / split / f"{shard:05d}.parquet", keys)
  return root


def write_parquet(path: Path, keys, *, status=None) -> None:
  import pyarrow as pa
  import pyarrow.parquet as pq

  table = {"key": list(keys), "status": status or ["success"] * len(keys)}
  pq.write_table(pa.table(table), path)


def record_set(root: Path, *, shards=2, per_shard=6, subset="video", split="train", **clip) -> Path:
  """The samples of `video_set` as ArrayRecord."""
  for shard in range(shards):
    samples = {}
    for i in range(per_shard):
      for name, data in clip_members(f"{shard:05d}{i:04d}", shard * per_shard + i, **clip):
        key, suffix = name.split(".")
        samples.setdefault(key, {})[suffix] = data
    write_records(root / subset / split / f"{shard:05d}.array_record", samples)
  return root


def write_records(path: Path, samples) -> None:
  """`samples`: {key: {suffix: bytes}}."""
  import msgpack
  from array_record.python.array_record_module import ArrayRecordWriter

  path.parent.mkdir(parents=True, exist_ok=True)
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for key, parts in samples.items():
    sums = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in parts.items()}
    writer.write(msgpack.packb({"__key__": key, **parts, "sha256": sums}))
  writer.close()


def image_set(root: Path, *, count=8, subset="image", split="train", size=(32, 32)) -> Path:
  """One tar of JPEGs, without a parquet."""
  members = []
  for i in range(count):
    members += [(f"{i:05d}.jpg", jpeg(frame((20 * i) % 230 + 10, size=size)))]
    members += [(f"{i:05d}.txt", f"image {i}".encode())]
  write_tar(root / subset / split / "00000.tar", members)
  return root


def tfds_set(root: Path, *, count=8) -> Path:
  """A prepared TFDS data set of clips; returns the folder of its version."""
  import tensorflow_datasets as tfds

  class Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text()
      features = tfds.features.FeaturesDict({"key": text, "mp4": text, "txt": text})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(count):
        parts = {name.split(".")[1]: data for name, data in clip_members(f"{i:05d}", i)}
        yield i, {"key": f"{i:05d}", "mp4": parts["mp4"], "txt": parts["txt"]}

  builder = Clips(data_dir=str(root), file_format="array_record")
  builder.download_and_prepare()
  return Path(builder.data_path)
