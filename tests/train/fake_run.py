"""A run of the fake stage on data made up on the spot; for tests of the loop."""

import dataclasses

import numpy as np
from fake_stage import FakeConfig, FakeStage

from vidgen.dist.mesh import MeshConfig
from vidgen.errors import CheckpointError
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.train.experiment import Experiment, OptimizerConfig, StageConfig, TrainConfig
from vidgen.train.loop import train


class FakeData:
  """Batch n is a function of (seed, n); every fourth is of images. `spoil` makes batches NaN."""

  def __init__(self, experiment, *, name="made up", spoil=(), on_next=None):
    self.stage = FakeStage(FakeConfig())
    self.size = experiment.train.batch_size
    self.seed = experiment.train.seed
    self.buckets = [bucket.name for bucket in experiment.inputs.buckets]
    self.name, self.spoil, self.on_next = name, spoil, on_next
    self.position = 0
    self.closed = False

  def make(self, n, bucket, size):
    rng = np.random.default_rng([self.seed, n])
    spec = self.stage.batch_spec(size, bucket)
    text = rng.integers(3, 259, spec["text"].shape, dtype=np.int32)
    pixels = np.tanh((text.mean(axis=1) - 130) / 10)[:, None, None, None, None]
    video = np.broadcast_to(pixels, spec["video"].shape).astype(np.float32)
    return {
      "video": video * (np.nan if n in self.spoil else 1),
      "text": text,
      "text_mask": np.ones(text.shape, np.bool_),
      "fps": np.full(size, 8, np.float32),
    }

  def __next__(self):
    if self.on_next:
      self.on_next(self.position)
    bucket = self.buckets[self.position % 4 == 3] if len(self.buckets) > 1 else self.buckets[0]
    batch = self.make(self.position, bucket, self.size)
    self.position += 1
    return batch

  names = frozenset({"video", "text", "text_mask", "fps"})
  bad_samples = 0
  decode = None

  def get_state(self):
    return {"position": self.position, "batch_size": self.size}

  def set_state(self, state, *, changed):
    if state["batch_size"] != self.size and not changed:
      raise CheckpointError("another batch size")
    self.position = state["position"]

  def describe(self):
    return {"name": self.name}

  def held_out(self, batches):
    return [self.make(10_000 + i, "video", self.size) for i in range(batches)]

  def examples(self, count):
    return self.make(10_000, "video", count)

  def captions(self, examples):
    return [f"caption {i}" for i in range(len(examples["text"]))]

  def close(self):
    self.closed = True


def experiment(*, optimizer=None, mesh=None, buckets=("video", "image"), **train_fields):
  fields = {
    "seed": 1, "steps": 12, "batch_size": 16, "ema_decay": 0.9, "log_every": 4, "save_every": 5,
    "eval_every": 6, "eval_batches": 2, "max_bad_steps": 3, "unsharded_tolerance": 1.0,
  }  # fmt: skip
  c = FakeConfig()
  return Experiment(
    name="fake",
    stage=StageConfig("fake"),
    inputs=InputConfig(
      buckets=tuple(
        Bucket(name=name, frames=c.frames if name == "video" else 1, height=c.size, width=c.size)
        for name in buckets
      )
    ),
    train=TrainConfig(
      **{**fields, **train_fields},
      optimizer=OptimizerConfig(**{"learning_rate": 1e-2, "warmup_steps": 2, **(optimizer or {})}),
    ),
    mesh=mesh or MeshConfig(),
  )


def changed(one, **fields):
  return dataclasses.replace(one, train=dataclasses.replace(one.train, **fields))


def run(one, workdir, *, stage=None, data=None, allowed=()):
  stage = stage or FakeStage(FakeConfig())
  return train(one, stage=stage, data=data or FakeData(one), workdir=workdir, allowed=allowed)
