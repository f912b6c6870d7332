"""Batches of buckets that choose their samples: what is in them, in which order, how resumed."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from batches import ONE, VIDEO, captions, same, take
from many_shapes import LENGTHS, SHAPES, bucket, buckets, clip, many_shapes, name_of, write
from shards import clip_members, video_set, write_tar
from test_latents import CACHED, batches
from test_latents import write as write_latents

from vidgen.errors import CheckpointError, DataError
from vidgen.inputs.choice import NoBatch
from vidgen.inputs.pipeline import make_dataset

CONFIG = dataclasses.replace(
  ONE, buckets=buckets(), aspect_tolerance=0.2, max_upsampling=1.0, text_length=24
)
EMPTY = (name_of(8, *SHAPES[1]), name_of(4, *SHAPES[2]), name_of(1, *SHAPES[4]))
STEPS = 120  # each bucket is drawn: images of one shape are 1 in 55


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return many_shapes(tmp_path_factory.mktemp("data"), without=EMPTY)


def place_of(name):
  return [b.name for b in CONFIG.buckets].index(name)


def dataset_of(config, data, **fields):
  return make_dataset(config, data, **{"batch_size": 2, "seed": 0, **fields})


@pytest.fixture(scope="module")
def taken(data):
  return take(dataset_of(CONFIG, data), STEPS)


def test_each_batch_has_one_shape_and_only_samples_of_its_length_and_aspect(taken):
  found = Counter()
  for batch in taken:
    _, frames, height, width, _ = batch["video"].shape
    found[frames, height, width] += 1
    assert {c.split()[0] for c in captions([batch])} == {f"{frames}x{height}x{width}"}
  there = {(f, h, w) for f in (*LENGTHS.values(), 1) for h, w in SHAPES}
  assert set(found) == {shape for shape in there if name_of(*shape) not in EMPTY}


def test_empty_buckets_are_named_and_leave_their_share_to_their_group(data, taken):
  dataset = dataset_of(CONFIG, data)
  assert [note.split("'")[1] for note in dataset.notes] == sorted(EMPTY, key=place_of)
  assert all("no train sample is for it" in note for note in dataset.notes)
  images = sum(batch["video"].shape[1] == 1 for batch in taken)
  assert images == pytest.approx(STEPS / 11, abs=2)  # 5 x 0.3 to 15 x 1.0, whatever is empty
  single = [b for b in taken if b["video"].shape[1:4] == (4, *SHAPES[0])]
  double = [b for b in taken if b["video"].shape[1:4] == (4, *SHAPES[1])]
  assert len(double) == pytest.approx(2 * len(single), abs=1)  # which has twice the clips


def test_the_rate_of_a_row_is_that_at_which_its_clip_was_sampled(data, taken):
  for batch in taken:
    frames = batch["video"].shape[1]
    for caption, fps, video in zip(captions([batch]), batch["fps"], batch["video"], strict=True):
      if frames == 1:
        assert fps == 4
        continue
      low = next(bounds[0] for bounds, n in LENGTHS.items() if n == frames)
      seconds = low + 0.25 * int(caption.split()[1]) + 0.125
      assert fps == pytest.approx(frames / min(seconds, frames / 4.0), rel=1e-6)
      level = (video.mean((1, 2, 3)) + 1) * 127.5  # rises by 160 over the whole clip
      shown = 160 * min(1.0, frames / 4.0 / seconds) * (frames - 1) / frames
      assert level[-1] - level[0] == pytest.approx(shown, abs=24)


def test_the_prefix_of_a_caption_says_the_rate_of_its_row(data):
  config = dataclasses.replace(CONFIG, prefix=("fps",), text_length=32)
  for batch in take(dataset_of(config, data), 40):
    for caption, fps in zip(captions([batch]), batch["fps"], strict=True):
      still = batch["video"].shape[1] == 1
      assert caption.startswith("FPS-") != still
      assert still or caption.split()[0] == f"FPS-{round(float(fps))}"


def test_what_cannot_be_read_is_named_before_the_first_batch_and_counts(data, tmp_path):
  path = tmp_path / "quarantine.jsonl"
  dataset = dataset_of(CONFIG, data, quarantine_path=str(path))
  (line,) = map(json.loads, path.read_text().splitlines())
  assert line["shard"] == "video/train/00000.tar" and dataset.quarantine.count() == 1
  with pytest.raises(DataError, match="1 bad samples"):
    dataset_of(dataclasses.replace(CONFIG, bad_count=0), data)


@pytest.mark.parametrize("change", [{}, {"threads": 4}, {"cache_bytes": 1 << 22}])
def test_a_run_stopped_anywhere_goes_on_exactly_from_bucket_to_bucket(data, taken, change):
  for position in (0, 7, 38):
    resumed = iter(dataset_of(dataclasses.replace(CONFIG, **change), data))
    state = json.loads(json.dumps(resumed.get_state()))
    resumed.set_state({**state, "position": position})
    same([next(resumed) for _ in range(12)], taken[position : position + 12])
    resumed.close()


def test_worker_processes_make_the_same_batches(data, taken):
  same(take(dataset_of(dataclasses.replace(CONFIG, workers=1), data), 12), taken[:12])


def test_the_rows_of_two_processes_are_those_of_one_batch(data):
  whole = take(dataset_of(CONFIG, data, batch_size=4), 24)
  halves = [
    take(dataset_of(CONFIG, data, batch_size=4, rows=rows), 24) for rows in ([0, 1], [2, 3])
  ]
  joined = [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*halves, strict=True)]
  same(joined, whole)


def test_a_bucket_with_fewer_samples_than_a_batch_repeats_them_evenly(tmp_path):
  root = write(tmp_path, {str(i): clip(SHAPES[0], 0.75) for i in range(3)})
  config = dataclasses.replace(CONFIG, buckets=(bucket(4, *SHAPES[0]),))
  names = captions(take(dataset_of(config, root, batch_size=8), 3))
  assert Counter(names) == dict.fromkeys("012", 8)
  assert all(sorted(names[i : i + 3]) == ["0", "1", "2"] for i in range(0, 24, 3))


def test_without_repeat_what_fills_no_batch_is_left_out_and_named(tmp_path):
  clips = {f"a{i}": clip(SHAPES[0], 0.75) for i in range(3)}
  root = write(tmp_path, clips | {"b": clip(SHAPES[0], 1.25)})
  chosen = tuple(bucket(frames, *SHAPES[0]) for frames in LENGTHS.values())
  config = dataclasses.replace(CONFIG, buckets=chosen)
  dataset = dataset_of(config, root, batch_size=3, repeat=False)
  (batch,) = list(dataset)
  assert sorted(captions([batch])) == ["a0", "a1", "a2"]
  assert ["1 samples do not fill" in n for n in dataset.notes] == [True, False]
  assert "no train sample" in dataset.notes[1]
  with pytest.raises(NoBatch, match="do not fill a batch of 4"):
    dataset_of(config, root, batch_size=4, repeat=False)


def test_where_no_bucket_gets_a_sample_the_error_counts_why(tmp_path):
  root = write(tmp_path, {"a": clip(SHAPES[0], 0.25), "b": clip((8, 48), 2.0)})
  with pytest.raises(NoBatch, match="no train sample is for any of the buckets 'a', 'b'") as caught:
    wanted = tuple(bucket(8, *SHAPES[0], name=name) for name in "ab")
    dataset_of(dataclasses.replace(CONFIG, buckets=wanted), root)
  assert "1 too short (such as shard video/train/00000.tar, key '000000000')" in str(caught.value)
  assert "1 aspect beyond tolerance" in str(caught.value)


def test_only_chosen_samples_come_in_place_of_bad_ones(tmp_path):
  """A sound video without a caption is found out late; another of its length takes its place."""
  members = []
  for i in range(12):
    pair = clip_members(f"{i:05d}", i, frames=8 if i % 2 else 16, size=(32, 32))
    members += [pair[0], *([] if i % 4 == 1 else pair[1:])]
  write_tar(tmp_path / "video/train/00000.tar", members)
  brief = bucket(4, *SHAPES[0], min_seconds=0.5, max_seconds=1.5)
  config = dataclasses.replace(CONFIG, buckets=(brief,))
  names = Counter(captions(take(dataset_of(config, str(tmp_path), batch_size=6), 8)))
  assert set(names) == {"clip 3", "clip 7", "clip 11"} and names.total() == 48


def test_a_position_holds_only_for_the_same_chosen_samples(tmp_path):
  """Longer bounds that choose the same clips are another config; another choice is named, too."""
  root = write(tmp_path, {str(i): clip(SHAPES[0], 0.6 + 0.1 * i) for i in range(4)})
  config = dataclasses.replace(CONFIG, buckets=(bucket(4, *SHAPES[0]),))
  state = iter(dataset_of(config, root)).get_state()
  other = dataclasses.replace(config, buckets=(bucket(4, *SHAPES[0], min_seconds=0.7),))
  with pytest.raises(CheckpointError, match=r"chosen\.video_4x16x16: .*min_seconds"):
    iter(dataset_of(other, root)).set_state(state)


def test_positions_of_before_buckets_chose_are_what_they_were(tmp_path):
  video_set(tmp_path, shards=1, per_shard=2)
  state = iter(make_dataset(ONE, str(tmp_path), batch_size=2, seed=0)).get_state()
  assert "chosen" not in state
  assert not {"aspect_tolerance", "max_upsampling"} & set(state["inputs"])
  assert set(state["inputs"]["buckets"][0]) == {
    "name", "subset", "frames", "height", "width", "fps", "weight",
  }  # fmt: skip
  assert not (tmp_path / "clip_index").exists()
  chosen = dataclasses.replace(ONE, buckets=(dataclasses.replace(VIDEO, min_rate=1.0),))
  assert "chosen" in iter(make_dataset(chosen, str(tmp_path), batch_size=2, seed=0)).get_state()


def test_cached_latents_are_those_of_the_chosen_clips_at_their_rates(tmp_path):
  """Each clip has a rate of its own, which is told as when the clip itself is decoded."""
  lengths = {f"{i}": clip(SHAPES[0], 0.55 + 0.15 * i) for i in range(8)}
  root = Path(write(tmp_path, {**lengths, "wide": clip((8, 48), 1.0)}))
  chosen = tuple(bucket(frames, *SHAPES[0]) for frames in LENGTHS.values())
  cached = dataclasses.replace(CACHED, buckets=chosen, aspect_tolerance=0.2, prefix=("fps",))
  assert write_latents(root, cached) == {}
  ours, _ = batches(root, cached)
  theirs, _ = batches(root, dataclasses.replace(cached, latents=""))
  same(ours, theirs)
  assert len({fps for batch in ours for fps in batch["fps"].tolist()}) > 4
