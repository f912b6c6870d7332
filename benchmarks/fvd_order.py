"""Does FVD order corruptions as it must, and by how much? ShapesWorld clips through a random I3D.

  python benchmarks/fvd_order.py --count 64 --json benchmarks/results/fvd_order.json

Real clips are split into halves, and the second half is scored against the first as it is, and
after each corruption: blurred (a Gaussian of 1.5 pixels), shuffled (frames in random order), frozen
(the first frame throughout), and noisy (16 of 255 levels). Nothing is downloaded: I3D has random
weights, so the values are of no published scale; what counts is each value over that of the clean
half, which is the bias of so few samples and no more. Kernel distances, which have no such bias,
stand beside.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vidgen.config import plain
from vidgen.evals.clips import ClipRule
from vidgen.evals.extractors.i3d import i3d_extractor, random_i3d
from vidgen.evals.scoring import Session
from vidgen.evals.settings import Settings
from vidgen.shapes_world.render import render
from vidgen.shapes_world.world import WorldSpec, sample_clip

METRICS = ("fvd", "kvd")


def real_clips(count: int, *, frames: int, side: int, seed: int) -> np.ndarray:
  """uint8 [n, t, h, w, 3]."""
  world = WorldSpec(height=side, width=side, frames=frames, fps=8.0)
  return np.stack([render(sample_clip(world, seed=seed, index=i), world) for i in range(count)])


def blurred(clips: np.ndarray, *, sigma: float) -> np.ndarray:
  """Each frame, by a Gaussian of `sigma` pixels, edges mirrored."""
  at = np.arange(-3 * int(np.ceil(sigma)), 3 * int(np.ceil(sigma)) + 1)
  weights = np.exp(-((at / sigma) ** 2) / 2)
  weights /= weights.sum()
  x = clips.astype(np.float32)
  for axis in (2, 3):
    pad = [(0, 0)] * 5
    pad[axis] = (-at[0], at[-1])
    padded = np.pad(x, pad, mode="reflect")
    places = np.arange(x.shape[axis])
    x = np.zeros_like(x)
    for i, weight in enumerate(weights):
      x += np.float32(weight) * np.take(padded, places + i, axis=axis)
  return np.rint(x).astype(np.uint8)


def shuffled(clips: np.ndarray) -> np.ndarray:
  """The frames of each clip in an order of its own."""
  rng = np.random.default_rng(0)
  return np.stack([clip[rng.permutation(len(clip))] for clip in clips])


def frozen(clips: np.ndarray) -> np.ndarray:
  """The first frame of each clip, throughout."""
  return np.repeat(clips[:, :1], clips.shape[1], axis=1)


def noisy(clips: np.ndarray, *, deviation: float) -> np.ndarray:
  """With Gaussian noise of so many of 255 levels."""
  noise = np.random.default_rng(0).normal(0, deviation, clips.shape)
  return np.clip(np.rint(clips + noise), 0, 255).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "clean": lambda clips: clips,
  "blurred": lambda clips: blurred(clips, sigma=1.5),
  "shuffled": shuffled,
  "frozen": frozen,
  "noisy": lambda clips: noisy(clips, deviation=16.0),
}


def write(folder: Path, clips: np.ndarray) -> Path:
  """Folders of PNG files, without loss."""
  for i, clip in enumerate(clips):
    (folder / f"{i:05}").mkdir(parents=True)
    for t, frame in enumerate(clip):
      Image.fromarray(frame).save(folder / f"{i:05}" / f"{t:03}.png")
  return folder


def main() -> None:
  """Scores every corruption and prints a table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--count", type=int, default=64, help="clips in each half")
  parser.add_argument("--frames", type=int, default=16)
  parser.add_argument("--side", type=int, default=64, help="pixels; the network sees 224")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--json", type=Path)
  args = parser.parse_args()
  start = time.perf_counter()
  clips = real_clips(2 * args.count, frames=args.frames, side=args.side, seed=args.seed)
  first, second = clips[: args.count], clips[args.count :]
  extractor = i3d_extractor(random_i3d(args.seed), digest=f"random {args.seed}", weights="random")
  rows: dict[str, dict[str, float]] = {}
  protocol = None
  with tempfile.TemporaryDirectory() as folder:
    reference = write(Path(folder, "first"), first)
    for number, (name, corrupt) in enumerate(CORRUPTIONS.items()):
      settings = Settings(
        samples=write(Path(folder, f"second{number}"), corrupt(second)), reference=reference,
        clip=ClipRule(frames=args.frames, sequence_fps=8.0), allow_small=True,
        cache=Path(folder, "cache"), extractors={"i3d": extractor},
      )  # fmt: skip
      session = Session(settings, METRICS)
      scores = {metric: session.score(metric) for metric in METRICS}
      rows[name] = {k: v for score in scores.values() for k, v in score.values.items()}
      row, protocol = rows[name], scores["fvd"].protocol
      row["fvd_over_clean"] = row["fvd"] / rows["clean"]["fvd"]
      interval = f"{row['low']:.4g} to {row['high']:.4g}"
      print(f"{name:10} fvd {row['fvd']:10.6g}  {row['fvd_over_clean']:6.2f} of clean"
            f"  kvd {row['kvd']:10.5g} ({interval})", flush=True)  # fmt: skip
  if args.json:
    record = {
      "count": args.count, "frames": args.frames, "side": args.side, "seed": args.seed,
      "machine": platform.machine(), "seconds": round(time.perf_counter() - start, 1),
      "protocol": plain(protocol), "values": rows,
    }  # fmt: skip
    args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
  main()
