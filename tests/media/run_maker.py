"""A small run as the other verbs leave it, written by their own writers."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from vidgen import config as cfg
from vidgen.evals.protocol import Protocol, Score
from vidgen.evals.samples import SampleRecord, read_samples, write_records
from vidgen.inputs.quarantine import BadSample, Budget, Quarantine
from vidgen.media.video import encode_mp4
from vidgen.systems import SampleSettings
from vidgen.train import manifest
from vidgen.train.metrics import JsonLines

COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}
CONFIG = {
  "name": "movie_gen_t2v_tiny",
  "stage": {"name": "movie_gen/t2v", "fields": {"width": 128, "layers": 6}},
  "inputs": {"buckets": [{"name": "video", "frames": 8}], "shuffle": True},
  "train": {"seed": 7, "steps": 400, "batch_size": 64, "optimizer": {"name": "adamw"}},
}


def moving_square(index: int, *, size: int = 16, frames: int = 8) -> np.ndarray:
  """uint8 [t, h, w, 3]: a coloured square that crosses a dark ground."""
  video = np.full((frames, size, size, 3), 24, np.uint8)
  colour, side = list(COLOURS.values())[index % 3], size // 3
  for t in range(frames):
    left = round(t * (size - side) / (frames - 1))
    top = (3 * index) % (size - side)
    video[t, top : top + side, left : left + side] = colour
  return video


def prompt(index: int) -> str:
  return f"a {list(COLOURS)[index % 3]} square moves right over a gray background, number {index}"


def make_logs(workdir: Path, *, steps: int = 400, bad: tuple[int, ...] = (37,)) -> None:
  workdir.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(0)
  train = JsonLines(workdir / "train.jsonl", step=0)
  speed = JsonLines(workdir / "speed.jsonl", step=0)
  for step in range(1, steps + 1):
    loss = 0.12 + 0.9 * math.exp(-step / 60) * (1 + 0.15 * noise.standard_normal())
    loss = math.nan if step in bad else loss
    train.write(
      {
        "step": step, "bucket": "video", "bad_steps": float(step in bad),
        "gradient_norm": 3.0 / math.sqrt(step) + 0.1 * abs(noise.standard_normal()),
        "learning_rate": 1e-3 * min(1, step / 50), "loss": loss, "update_norm": 0.01,
      }
    )  # fmt: skip
    if step % 50 == 0:
      train.write({"step": step, "held_out_loss": 0.14 + 0.9 * math.exp(-step / 60)})
    if step % 10 == 0:
      speed.write(
        {
          "step": step, "time": 1.8e9 + step, "seconds_per_step": 0.25,
          "samples_per_second": 256 + 8 * noise.standard_normal(), "data_wait": 0.01,
          "save_wait": 0.002, "includes": [], "model_flops_per_second": 4.5e10, "mfu": 0.31,
          "peak_flops_per_second": 1.45e11,
        }
      )  # fmt: skip
  train.close()
  speed.close()


def make_checkpoint(workdir: Path, *, step: int = 400) -> None:
  """A checkpoint's manifest alone: a report reads nothing else of it."""
  directory = workdir / "checkpoints" / f"{step:08d}"
  directory.mkdir(parents=True)
  arrays = manifest.record_arrays("params", {"head/kernel": np.ones((128, 96), np.float32)})
  manifest.write(
    directory,
    manifest.Manifest(
      format=manifest.FORMAT, step=step, versions=manifest.versions(), config=cfg.digest(CONFIG),
      files=(), arrays=tuple(arrays), digests=manifest.digests(arrays, []),
    ),
  )  # fmt: skip


def make_samples(directory: Path, *, count: int = 4, size: int = 16, prompts=None) -> None:
  directory.mkdir(parents=True)
  records = []
  for i in range(count):
    video = moving_square(i, size=size)
    mp4 = encode_mp4(video, fps=4.0, crf=12)
    (directory / f"{i:05d}.mp4").write_bytes(mp4)
    records.append(
      SampleRecord(
        index=i, key=f"{i:08d}", prompt=prompts[i] if prompts else prompt(i), cut=False, seed=3,
        step=400, weights="ema", config_digest=cfg.digest(CONFIG), params_digest="0" * 64,
        settings=SampleSettings(steps=24, guidance_scale=3.0), file=f"{i:05d}.mp4",
        sha256=hashlib.sha256(mp4).hexdigest(), latents_sha256="0" * 64, frames=len(video),
        height=size, width=size, fps=4.0,
      )
    )  # fmt: skip
  write_records(directory, records)


def make_scores(path: Path, samples: Path) -> None:
  """As `vidgen eval --json`: every third sample moves wrongly, every fourth has another shape."""
  found = read_samples(samples)
  verdicts = []
  for r in found.records:
    wanted = {"shape": "square", "colour": "red", "motion": "right", "background": "gray"}
    read = {
      **wanted,
      "motion": "left" if r.index % 3 == 2 else "right",
      "shape": "cross" if r.index % 4 == 3 else "square",
    }
    right = {name: read[name] == wanted[name] for name in wanted}
    right["all"] = all(right.values())
    verdicts.append(
      {"index": r.index, "key": r.key, "prompt": r.prompt, "wanted": wanted, "read": read,
       "right": right}
    )  # fmt: skip
  values = {
    name: sum(v["right"][name] for v in verdicts) / len(verdicts)
    for name in ("shape", "colour", "motion", "background", "all")
  }
  r = found.records[0]
  protocol = Protocol(
    metric="shapes_probe", extractor="ShapesWorld probe", extractor_version="1",
    extractor_digest="a" * 64, height=r.height, width=r.width, frames=r.frames, fps=r.fps,
    count=len(verdicts), missing=0, reference="b" * 64, quantisation="uint8 RGB",
    value_range=(0.0, 255.0), samples=found.digest(),
  )  # fmt: skip
  score = cfg.plain(Score(values, protocol, tuple(verdicts)))
  tree = {
    "scores": {"shapes_probe": score}, "accuracy": values, "protocol": score["protocol"],
    "samples": score["verdicts"],
  }  # fmt: skip
  path.write_text(json.dumps(tree, indent=2))


def make_run(workdir: Path, *, count: int = 4, prompts=None, size: int = 16) -> Path:
  """A whole run."""
  make_logs(workdir)
  (workdir / "config.json").write_text(cfg.canonical_json(CONFIG))
  make_checkpoint(workdir)
  make_samples(workdir / "samples", count=count, prompts=prompts, size=size)
  make_scores(workdir / "scores.json", workdir / "samples")
  quarantine = Quarantine(workdir / "quarantine.jsonl", budget=Budget(100, 0.1, 1000))
  for i in range(3):
    quarantine.record(BadSample("no frames", shard="video/train/00000.tar", key=f"{i:08d}"))
  quarantine.record(BadSample("caption is missing", shard="video/train/00001.tar", key="x"))
  return workdir
