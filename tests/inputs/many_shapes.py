"""A small data set of clips of many lengths and shapes, and the buckets that choose among them."""

from pathlib import Path

from shards import frame, jpeg, mp4, write_tar

from vidgen.inputs.config import Bucket

SHAPES = [(16, 16), (12, 22), (22, 12), (14, 18), (18, 14)]  # height, width of five aspect ratios
LENGTHS = {(0.5, 1.0): 4, (1.0, 1.5): 6, (1.5, 0.0): 8}  # seconds of three lengths, to frames


def name_of(frames: int, height: int, width: int) -> str:
  return f"{'video' if frames > 1 else 'image'}_{frames}x{height}x{width}"


def bucket(frames: int, height: int, width: int, **fields) -> Bucket:
  """A bucket of some length and shape: frames spread over clips, 4 a second or more."""
  low, high = next((b for b, f in LENGTHS.items() if f == frames), (0.0, 0.0))
  kind = "video" if frames > 1 else "image"
  own = {"rate": "spread", "min_seconds": low, "max_seconds": high} if frames > 1 else {}
  return Bucket(
    **{
      "name": name_of(frames, height, width), "subset": kind, "group": kind, "frames": frames,
      "height": height, "width": width, "fps": 4.0, "weight": 1.0 if frames > 1 else 0.3,
      **own, **fields,
    }
  )  # fmt: skip


def buckets() -> tuple[Bucket, ...]:
  """Three lengths in five shapes, and images in the same five."""
  return tuple(bucket(frames, h, w) for frames in (*LENGTHS.values(), 1) for h, w in SHAPES)


def clip(shape: tuple[int, int], seconds: float, *, level: int = 40) -> bytes:
  """A clip at 16 fps of twice the `shape` of a bucket, each frame brighter than the one before."""
  size = (2 * shape[0], 2 * shape[1])
  count = round(seconds * 16)
  return mp4([frame(level + 160 * i // count, size=size) for i in range(count)], fps=16)


def write(root: Path, clips, *, subset="video", split="train", shard="00000") -> str:
  """`clips`: caption to encoded clip or picture."""
  suffix = "mp4" if subset == "video" else "jpg"
  members = []
  for i, (caption, data) in enumerate(clips.items()):
    members += [(f"{shard}{i:04d}.{suffix}", data), (f"{shard}{i:04d}.txt", caption.encode())]
  write_tar(root / subset / split / f"{shard}.tar", members)
  return str(root)


def many_shapes(root: Path, *, without=(), split="train") -> str:
  """Clips that all buckets want but those named in `without`, some twice; and some that none does.

  Captions are the bucket's name without its kind, and a number.
  """
  clips, pictures = {}, {}
  for (low, _), frames in LENGTHS.items():
    for number, shape in enumerate(SHAPES):
      if name_of(frames, *shape) not in without:
        for i in range(1 + number % 2):
          key = f"{frames}x{shape[0]}x{shape[1]} {i}"
          clips[key] = clip(shape, low + 0.25 * i + 0.125, level=10 + 10 * number)
  clips["brief"] = clip(SHAPES[0], 0.25)
  clips["wide"] = clip((8, 48), 1.0)
  clips["small"] = mp4([frame(9, size=(8, 8))] * 16, fps=16)
  clips["torn"] = clips["brief"][:-200]
  for shape in SHAPES:
    if name_of(1, *shape) not in without:
      size = (2 * shape[0], 2 * shape[1])
      pictures[f"1x{shape[0]}x{shape[1]} 0"] = jpeg(frame(90, size=size))
  if pictures:
    write(root, pictures, subset="image", split=split)
  return write(root, clips, split=split)
