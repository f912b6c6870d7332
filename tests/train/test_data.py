"""The loop on real shards: workers change nothing, and what changes the data is refused."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_run import changed, experiment, run
from fake_stage import FakeConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "inputs"))

from shards import image_set, video_set  # noqa: E402 (found by the line above)
from test_loop import digests  # noqa: E402 (sorted with it)

from vidgen.errors import CheckpointError, DataError  # noqa: E402 (likewise)
from vidgen.train.data import ShardData  # noqa: E402 (likewise)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  video_set(root, shards=2, per_shard=8, frames=4, size=(8, 8))
  return video_set(root, shards=1, per_shard=4, frames=4, size=(8, 8), split="held_out")


def small(*, workers=0, **fields):
  one = experiment(buckets=("video",), batch_size=8, **fields)
  inputs = dataclasses.replace(
    one.inputs, text_length=FakeConfig().text_length, workers=workers, prefetch=2
  )
  return dataclasses.replace(one, inputs=inputs)


def open_data(one, directory, workdir):
  config = one.train
  return ShardData(
    one.inputs, str(directory), batch_size=config.batch_size, seed=config.seed, workdir=workdir
  )


def run_on(one, directory, workdir, **options):
  return run(one, workdir, data=open_data(one, directory, workdir), **options)


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight")
  run_on(small(), shards, workdir)
  return workdir


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_with_the_next_batch(workers, shards, straight, tmp_path):
  run_on(small(steps=6, workers=workers), shards, tmp_path)
  run_on(small(workers=workers), shards, tmp_path)
  mine, reference = digests(tmp_path), digests(straight)
  assert {k: mine[k] for k in ("params", "ema", "optimizer")} == {
    k: reference[k] for k in ("params", "ema", "optimizer")
  }
  assert (tmp_path / "train.jsonl").read_bytes() == (straight / "train.jsonl").read_bytes()


def test_held_out_batches_are_the_same_every_time_and_absent_without_a_split(shards, tmp_path):
  one = small()
  batches = [open_data(one, shards, tmp_path).held_out(2) for _ in range(2)]
  assert len(batches[0]) == 2
  for a, b in zip(*batches, strict=True):
    np.testing.assert_array_equal(a["video"], b["video"])
    np.testing.assert_array_equal(a["text"], b["text"])
  data = open_data(one, shards, tmp_path)
  assert all(caption.startswith("clip") for caption in data.captions(data.examples(3)))
  other = video_set(tmp_path / "no_split", shards=1, per_shard=8, frames=4, size=(8, 8))
  assert open_data(one, other, tmp_path).held_out(2) == []
  assert open_data(one, other, tmp_path).examples(3) is None


def test_the_names_of_a_batch_are_as_stated(shards, tmp_path):
  data = open_data(small(), shards, tmp_path)
  assert data.names == set(next(data)) and data.bad_samples == 0


def test_buckets_without_held_out_clips_are_named_and_the_others_evaluated(tmp_path, capsys):
  root = video_set(tmp_path / "data", shards=1, per_shard=8, frames=4, size=(8, 8))
  video_set(root, shards=1, per_shard=4, frames=4, size=(8, 8), split="held_out")
  image_set(root)
  one = small()
  video, *_ = one.inputs.buckets
  image = dataclasses.replace(video, name="image", subset="image", frames=1)
  inputs = dataclasses.replace(one.inputs, buckets=(image, video))
  data = open_data(dataclasses.replace(one, inputs=inputs), root, tmp_path)
  assert "nothing is held out for bucket image" in capsys.readouterr().err
  assert [b["video"].shape[1] for b in data.held_out(3)] == [video.frames] * 3
  assert data.examples(2)["video"].shape[:2] == (2, video.frames)
  assert data.describe()["held_out"]["image"] is None


def test_every_bucket_is_evaluated(shards, tmp_path):
  one = small()
  video, *_ = one.inputs.buckets
  short = dataclasses.replace(video, name="short", frames=1, weight=0.01)
  inputs = dataclasses.replace(one.inputs, buckets=(video, short))
  data = open_data(dataclasses.replace(one, inputs=inputs), shards, tmp_path)
  assert [b["video"].shape[1] for b in data.held_out(4)] == [video.frames] * 2 + [1] * 2


def test_held_out_clips_too_short_for_one_bucket_are_not_bad(tmp_path):
  root = video_set(tmp_path / "data", shards=1, per_shard=8, frames=4, size=(8, 8))
  video_set(root, shards=1, per_shard=8, frames=4, size=(8, 8), split="held_out")
  one = small()
  short, *_ = one.inputs.buckets
  # every clip fits `short` and none `long`: that is told, and no clip is called bad for it
  long = dataclasses.replace(short, name="long", frames=64)
  inputs = dataclasses.replace(one.inputs, buckets=(short, long))
  data = open_data(dataclasses.replace(one, inputs=inputs), root, tmp_path)
  with pytest.raises(DataError, match="bucket 'long': .* too short for it"):
    data.held_out(2)
  assert not (tmp_path / "quarantine.jsonl").exists()


def test_another_worker_count_or_data_set_is_refused_unless_told(shards, tmp_path):
  run_on(small(steps=3), shards, tmp_path)
  with pytest.raises(CheckpointError, match="inputs.workers: 0 -> 2"):
    run_on(small(steps=4, workers=2), shards, tmp_path)
  assert int(run_on(small(steps=4, workers=2), shards, tmp_path, allowed=("inputs",)).step) == 4
  other = video_set(tmp_path / "other", shards=1, per_shard=9, frames=4, size=(8, 8))
  one = small(steps=5, workers=2)
  with pytest.raises(CheckpointError, match=r"data\.train\.video"):
    run_on(one, other, tmp_path)
  assert int(run_on(one, other, tmp_path, allowed=("data",)).step) == 5


def test_other_held_out_clips_are_refused_unless_told(shards, tmp_path):
  """The curve of the held-out loss is one curve."""
  mine = tmp_path / "data"
  shutil.copytree(shards, mine)
  run_on(small(steps=3), mine, tmp_path / "run")
  video_set(mine, shards=1, per_shard=5, frames=4, size=(8, 8), split="held_out")
  one = small(steps=4)
  with pytest.raises(CheckpointError, match=r"data\.held_out\.video"):
    run_on(one, mine, tmp_path / "run")
  assert int(run_on(one, mine, tmp_path / "run", allowed=("data",)).step) == 4


def test_after_a_change_of_batch_size_as_many_examples_are_behind(shards, tmp_path):
  run_on(small(steps=6), shards, tmp_path)
  larger = changed(small(steps=8), batch_size=16)
  data = open_data(larger, shards, tmp_path)
  run(larger, tmp_path, data=data, allowed=("train.batch_size",))
  assert data.get_state()["position"] == 6 * 8 // 16 + 2
