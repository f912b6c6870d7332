"""Training on twenty batch shapes whose buckets choose their clips, some of them none."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from fake_run import changed, experiment, run
from fake_stage import FakeConfig, FakeStage
from test_loop import digests

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))

from many_shapes import SHAPES, bucket, buckets, many_shapes, name_of  # noqa: E402 (as above)

from vidgen.inputs.config import InputConfig  # noqa: E402 (likewise)
from vidgen.systems.stage import ArraySpec  # noqa: E402 (likewise)
from vidgen.train.data import ShardData  # noqa: E402 (likewise)

EMPTY = (name_of(8, *SHAPES[1]), name_of(4, *SHAPES[2]))
INPUTS = InputConfig(
  buckets=buckets(), text_length=FakeConfig().text_length, bad_fraction=1.0,
  aspect_tolerance=0.2, max_upsampling=1.0,
)  # fmt: skip
THREE = (bucket(8, *SHAPES[0]), bucket(4, *SHAPES[1]), bucket(1, *SHAPES[0]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = many_shapes(tmp_path_factory.mktemp("data"), without=EMPTY)
  rest = [one.name for one in buckets() if one.name != name_of(8, *SHAPES[0])]
  return many_shapes(Path(root), without=rest, split="held_out")


def open_data(data, workdir, inputs=INPUTS):
  return ShardData(inputs, data, batch_size=8, seed=1, workdir=workdir)


def test_no_shape_is_traced_twice_in_a_hundred_steps_of_a_network(data, tmp_path):
  traced = []

  @jax.jit
  def step(weight, batch):
    traced.append(batch["video"].shape)
    x = jnp.concatenate([batch["text"].astype(jnp.float32), batch["fps"][:, None]], 1) / 256

    def loss(weight):
      return jnp.mean((x @ weight - batch["video"].mean((1, 2, 3))) ** 2)

    return weight - 0.1 * jax.grad(loss)(weight)

  shards = open_data(data, tmp_path, dataclasses.replace(INPUTS, cache_bytes=1 << 24))
  weight, new = jnp.zeros((INPUTS.text_length + 1, 3)), []
  for _ in range(110):
    before = len(traced)
    weight = step(weight, dict(next(shards)))
    new.append(len(traced) > before)
  shards.close()
  there = {(8, one.frames, one.height, one.width, 3) for one in buckets() if one.name not in EMPTY}
  assert set(traced) == there and len(traced) == len(there) == 18
  assert not any(new[-40:]) and bool(jnp.isfinite(weight).all())


def test_empty_buckets_are_reported_and_those_without_held_out_clips(data, tmp_path, capsys):
  found = open_data(data, tmp_path)
  told = capsys.readouterr().err
  for name in EMPTY:
    assert f"warning: bucket {name!r} is left out: no train sample is for it" in told
  held = [one.name for one in buckets() if one.name not in told]
  assert held == [name_of(8, *SHAPES[0])]
  assert "in no bucket are 1 unreadable (such as shard video/held_out/00000.tar, key" in told
  (batch,) = found.held_out(1)
  assert batch["video"].shape == (8, 8, 16, 16, 3)
  found.close()


class SomeShapes(FakeStage):
  """The fake stage on some of the shapes: from the text and the rate to a clip's mean colour."""

  def __init__(self, config):
    super().__init__(config)
    self.traced = []

  @property
  def buckets(self):
    return tuple(one.name for one in THREE)

  def loss(self, params, batch, rng):
    self.traced.append(batch["video"].shape)
    found = self.predict(params, batch)[:, :3] + 0.01 * batch["fps"][:, None]
    error = jnp.mean((found - batch["video"].mean((1, 2, 3))) ** 2)
    return error, {"fps": jnp.mean(batch["fps"])}

  def batch_spec(self, batch_size, bucket="video"):
    one = {b.name: b for b in THREE}[bucket]
    shape = (batch_size, one.frames, one.height, one.width, 3)
    axes = ("batch", "frames", "height", "width_pixels", "channels")
    return {**super().batch_spec(batch_size), "video": ArraySpec(shape, jnp.float32, axes)}


def small(*chosen, **fields):
  one = experiment(batch_size=8, log_every=1, eval_every=0, steps=12, **fields)
  return dataclasses.replace(one, inputs=dataclasses.replace(INPUTS, buckets=chosen))


def trained(one, data, workdir):
  """Runs it in `workdir`; its stage, and a line for each step."""
  stage = SomeShapes(FakeConfig())
  run(one, workdir, stage=stage, data=open_data(data, workdir, one.inputs))
  lines = (workdir / "train.jsonl").read_text().splitlines()
  return stage, [row for row in map(json.loads, lines) if "bucket" in row]


def test_a_run_stopped_between_two_buckets_ends_as_the_unbroken_one(data, tmp_path):
  one = small(*THREE)
  _, reference = trained(one, data, tmp_path / "straight")
  names = [row["bucket"] for row in reference]
  stop = next(i for i in range(4, 12) if names[i] != names[i - 1])
  trained(changed(one, steps=stop), data, tmp_path / "stopped")
  _, rows = trained(one, data, tmp_path / "stopped")
  keys = ("step", "bucket", "loss", "fps")
  assert [[row[k] for k in keys] for row in rows] == [[row[k] for k in keys] for row in reference]
  assert digests(tmp_path / "stopped") == digests(tmp_path / "straight")


def test_buckets_of_two_rates_share_the_program_of_their_shape(data, tmp_path):
  """As in fine-tuning: of two buckets of one shape, one has a name that is not the stage's."""
  fast = bucket(8, *SHAPES[0], name="fast", fps=12.0, rate="fixed", max_seconds=1.7)
  stage, rows = trained(small(THREE[0], fast), data, tmp_path)
  assert len(stage.traced) == 1
  assert {round(row["fps"], 2) for row in rows} == {12.0, round(8 / 1.625, 2)}
