"""Batches: one order whatever reads it, resumed exactly."""

import dataclasses
import json
import threading
from collections import Counter

import grain
import numpy as np
import pytest
from batches import IMAGE, MIXED, ONE, VIDEO, captions, same, take
from shards import (
  frame,
  image_set,
  jpeg,
  mp4,
  record_set,
  tfds_set,
  video_set,
  write_tar,
)

from vidgen.config import build, plain
from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.inputs.config import InputConfig
from vidgen.inputs.pipeline import (
  adopt_state,
  describe_data,
  make_dataset,
  state_differences,
)
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.storage import ShardFiles


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """12 clips in two tars and 8 images in one."""
  return image_set(video_set(tmp_path_factory.mktemp("data")))


def test_a_batch_is_what_the_stages_eat(data):
  batch = take(make_dataset(ONE, str(data), batch_size=3, seed=0), 1)[0]
  shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
  assert shapes == {
    "video": ((3, 4, 16, 16, 3), np.float32),
    "text": ((3, 16), np.int32),
    "text_mask": ((3, 16), np.bool_),
    "fps": ((3,), np.float32),
  }
  assert all(type(array) is np.ndarray for array in batch.values())
  assert (batch["fps"] == 4).all() and np.abs(batch["video"]).max() <= 1


def test_pixels_and_captions_belong_together(data):
  """Clip n of the fixture has gray levels from 4 n + 10 on, and the caption "clip n"."""
  config = dataclasses.replace(ONE, temporal_crop="start")
  batch = take(make_dataset(config, str(data), batch_size=12, seed=0), 1)[0]
  names = captions([batch])
  assert sorted(names) == sorted(f"clip {n}" for n in range(12))
  shown = (batch["video"][:, 0].mean((1, 2, 3)) + 1) * 127.5
  np.testing.assert_allclose(shown, [4 * int(n.split()[1]) + 10 for n in names], atol=4)


def test_each_epoch_is_the_whole_set_in_another_order(data):
  names = captions(take(make_dataset(ONE, str(data), batch_size=3, seed=0), 12))
  epochs = [names[i : i + 12] for i in range(0, 36, 12)]
  assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  other = captions(take(make_dataset(ONE, str(data), batch_size=3, seed=1), 4))
  assert other != epochs[0] and sorted(other) == sorted(epochs[0])


def test_without_shuffle_the_order_is_that_of_the_shards(data):
  config = dataclasses.replace(ONE, shuffle=False)
  names = captions(take(make_dataset(config, str(data), batch_size=6, seed=0), 3))
  assert names == [f"clip {i % 12}" for i in range(18)]


def test_without_repeat_every_bucket_is_read_once(data):
  batches = list(make_dataset(MIXED, str(data), batch_size=4, seed=0, repeat=False))
  assert sorted(captions(batches)) == sorted(
    [f"clip {i}" for i in range(12)] + [f"image {i}" for i in range(8)]
  )
  assert [b["video"].shape[1] for b in batches] == [4] * 3 + [1] * 2


def test_buckets_take_turns_by_weight(data):
  shapes = [
    b["video"].shape[1] for b in take(make_dataset(MIXED, str(data), batch_size=2, seed=0), 30)
  ]
  assert Counter(shapes) == {4: 20, 1: 10}


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("config", [ONE, MIXED], ids=["video", "mixed"])
def test_the_global_batch_is_the_same_on_any_number_of_processes(data, config, count):
  """Each process has its part of every batch: disjoint, in order, and together all of it."""
  whole = take(make_dataset(config, str(data), batch_size=4, seed=0), 6)
  parts = [
    take(
      make_dataset(
        config, str(data), batch_size=4, seed=0, rows=range(4)[index * 4 // count :][: 4 // count]
      ),
      6,
    )
    for index in range(count)
  ]
  joined = [
    {name: np.concatenate([p[name] for p in step]) for name in step[0]}
    for step in zip(*parts, strict=True)
  ]
  same(joined, whole)


def test_any_rows_of_the_batches_can_be_made(data):
  """As a mesh asks for them whose neighbours on the hardware are no neighbours in the batch."""
  whole = take(make_dataset(MIXED, str(data), batch_size=4, seed=0), 6)
  some = take(make_dataset(MIXED, str(data), batch_size=4, seed=0, rows=[0, 3]), 6)
  same(some, [{name: array[[0, 3]] for name, array in batch.items()} for batch in whole])


@pytest.mark.parametrize("rows", [[], [-1, 0], [2, 4]])
def test_rows_that_a_batch_does_not_have_are_refused(data, rows):
  with pytest.raises(ConfigError, match="of batches of 4"):
    make_dataset(ONE, str(data), batch_size=4, seed=0, rows=rows)


def test_a_position_of_many_processes_is_one_of_any_other_number(data):
  """Nothing of a process is in it: each goes on at the same global batch."""
  whole = take(make_dataset(MIXED, str(data), batch_size=4, seed=0), 7)
  saved = iter(make_dataset(MIXED, str(data), batch_size=4, seed=0, rows=[2, 3]))
  for _ in range(3):
    next(saved)
  state = json.loads(json.dumps(saved.get_state()))
  for rows in ([0, 1, 2, 3], [1], [0, 1]):
    resumed = iter(make_dataset(MIXED, str(data), batch_size=4, seed=0, rows=rows))
    resumed.set_state(state)
    rest = [next(resumed) for _ in range(4)]
    same(rest, [{name: array[rows] for name, array in batch.items()} for batch in whole[3:]])


@pytest.mark.parametrize("kind", ["tar", "array_record", "tfds", "mixed", "cached", "one_thread"])
def test_grains_own_checker(data, tmp_path, kind):
  config, directory = ONE, data
  if kind == "array_record":
    directory = record_set(tmp_path, per_shard=3)
  elif kind == "tfds":
    directory = tfds_set(tmp_path, count=6)
  elif kind == "mixed":
    config = dataclasses.replace(MIXED, caption_dropout=0.5, flip=0.5, spatial_crop="random")
  elif kind == "cached":
    config = dataclasses.replace(ONE, cache_bytes=1 << 20)
  elif kind == "one_thread":
    config = dataclasses.replace(ONE, threads=0, prefetch=0)
  dataset = make_dataset(config, str(directory), batch_size=2, seed=0)
  grain.experimental.assert_equal_output_after_checkpoint(
    grain.experimental.LimitIterDataset(dataset, 9)
  )


@pytest.mark.parametrize("kind", ["tar", "array_record"])
def test_a_set_that_ends_passes_grains_checker_too(data, tmp_path, kind):
  directory = data if kind == "tar" else record_set(tmp_path, per_shard=3)
  dataset = make_dataset(ONE, str(directory), batch_size=2, seed=0, repeat=False)
  grain.experimental.assert_equal_output_after_checkpoint(dataset)


def test_the_state_is_json_and_counts_batches(data):
  dataset = make_dataset(MIXED, str(data), batch_size=2, seed=0)
  iterator = iter(dataset)
  for position in range(3):
    state = iterator.get_state()
    assert json.loads(json.dumps(state)) == state and state["position"] == position
    next(iterator)
  resumed = iter(dataset)
  resumed.set_state(json.loads(json.dumps(iterator.get_state())))
  assert resumed.get_state() == iterator.get_state()
  same([next(resumed)], [next(iterator)])
  iterator.set_state({**iterator.get_state(), "position": 0})
  same([next(iterator)], take(dataset, 1))


CHANGES = {
  "batch_size: 2 -> 4": {"batch_size": 4},
  "seed: 0 -> 1": {"seed": 1},
  "workers: 0 -> 2": {"workers": 2},
  "inputs.text_length: 16 -> 8": {"text_length": 8},
  "inputs.limits.max_frames: 20000 -> 5": {"limits": dataclasses.replace(ONE.limits, max_frames=5)},
  "data:": {"data": True},
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_state_of_another_pipeline_is_refused_with_every_difference(data, tmp_path, line):
  state = iter(make_dataset(ONE, str(data), batch_size=2, seed=0)).get_state()
  change = dict(CHANGES[line])
  directory = data
  if change.pop("data", False):
    directory = video_set(tmp_path, per_shard=5)
  arguments = {name: change.pop(name) for name in ("batch_size", "seed") if name in change}
  config = dataclasses.replace(ONE, **change)
  iterator = iter(make_dataset(config, str(directory), **{"batch_size": 2, "seed": 0, **arguments}))
  with pytest.raises(CheckpointError, match=line):
    iterator.set_state(state)
  assert len(state_differences(state, iterator.get_state())) == 1


def test_an_accepted_change_goes_on_after_as_many_examples(data):
  old = iter(make_dataset(ONE, str(data), batch_size=2, seed=0))
  for _ in range(4):
    next(old)
  new = iter(make_dataset(ONE, str(data), batch_size=4, seed=0))
  new.set_state(adopt_state(old.get_state(), new.get_state()))
  assert new.get_state()["position"] == 2
  assert captions([next(new)]) == captions([next(old), next(old)])


def test_the_description_is_of_the_data_alone(data, tmp_path):
  description = describe_data(MIXED, str(data))
  assert sorted(description) == ["image", "video"]
  assert [s["samples"] for s in description["video"]] == [6, 6]
  assert json.loads(json.dumps(description)) == description
  assert describe_data(ONE, str(data)) == {"video": description["video"]}
  other = describe_data(ONE, str(video_set(tmp_path, per_shard=5)))
  assert other != {"video": description["video"]}


def test_the_cache_changes_no_batch(data):
  """Nor does a cache with room for some samples only."""
  config = dataclasses.replace(MIXED, caption_dropout=0.3, spatial_crop="random", flip=0.5)
  buckets = (dataclasses.replace(VIDEO, height=12), IMAGE)
  config = dataclasses.replace(config, buckets=buckets)
  plain_batches = take(make_dataset(config, str(data), batch_size=4, seed=0), 12)
  for cache_bytes in (1 << 20, 30_000):
    cached = dataclasses.replace(config, cache_bytes=cache_bytes)
    same(take(make_dataset(cached, str(data), batch_size=4, seed=0), 12), plain_batches)


def test_a_warm_cache_reads_and_decodes_nothing(data, monkeypatch):
  config = dataclasses.replace(ONE, cache_bytes=1 << 20, threads=0, prefetch=0)
  iterator = iter(make_dataset(config, str(data), batch_size=12, seed=0))
  next(iterator)
  monkeypatch.setattr("vidgen.inputs.loader.decode_video", None)
  monkeypatch.setattr("vidgen.inputs.sources.TarSource.__getitem__", None)
  next(iterator)


def test_captions_are_dropped_at_the_asked_rate_and_only_they(data):
  config = dataclasses.replace(ONE, caption_dropout=0.25, cache_bytes=1 << 20)
  batches = take(make_dataset(config, str(data), batch_size=100, seed=0), 20)
  full = take(make_dataset(dataclasses.replace(config, caption_dropout=0.0), str(data),
                           batch_size=100, seed=0), 20)  # fmt: skip
  dropped = np.concatenate([b["text"][:, 0] == 1 for b in batches])
  assert abs(dropped.mean() - 0.25) < 0.05  # 2,000 draws: five standard errors
  for batch, whole in zip(batches, full, strict=True):
    null = batch["text"][:, 0] == 1
    assert (batch["text"][null, 1:] == 0).all() and not batch["text_mask"][null, 1:].any()
    assert batch["text_mask"][:, 0].all()
    np.testing.assert_array_equal(batch["text"][~null], whole["text"][~null])
    np.testing.assert_array_equal(batch["video"], whole["video"])


def test_flips_are_off_unless_asked_for(tmp_path):
  picture = np.concatenate([frame(20)[:, :16], frame(220)[:, 16:]], axis=1)
  write_tar(tmp_path / "image" / "train" / "0.tar", [("a.jpg", jpeg(picture)), ("a.txt", b"x")])
  config = dataclasses.replace(ONE, buckets=(IMAGE,))

  def right_is_bright(flip):
    dataset = make_dataset(
      dataclasses.replace(config, flip=flip), str(tmp_path), batch_size=50, seed=0
    )
    video = take(dataset, 1)[0]["video"][:, 0]
    return (video[:, :, 12:].mean((1, 2, 3)) > video[:, :, :4].mean((1, 2, 3))).mean()

  assert right_is_bright(0.0) == 1.0
  assert 0.2 < right_is_bright(0.5) < 0.8
  assert right_is_bright(1.0) == 0.0


def test_random_crops_move_and_stay_inside(tmp_path):
  """A clip of a ramp in space and time: what is cut says where it was cut."""
  ramp = np.repeat(np.linspace(20, 220, 64).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)
  members = [("a.jpg", jpeg(ramp)), ("a.txt", b"x")]
  write_tar(tmp_path / "image" / "train" / "0.tar", members)
  clip = mp4([frame(20 + 4 * i) for i in range(40)], fps=8)
  write_tar(tmp_path / "video" / "train" / "0.tar", [("a.mp4", clip), ("a.txt", b"x")])
  for cache_bytes in (0, 1 << 20):
    config = dataclasses.replace(ONE, spatial_crop="random", cache_bytes=cache_bytes)
    image = dataclasses.replace(config, buckets=(IMAGE,))
    left = take(make_dataset(image, str(tmp_path), batch_size=200, seed=0), 1)[0]["video"][
      :, 0, :, 0
    ]
    assert left.mean((1, 2)).std() > 0.15
    start = take(make_dataset(config, str(tmp_path), batch_size=200, seed=0), 1)[0]["video"]
    first = (start[:, 0].mean((1, 2, 3)) + 1) * 127.5
    assert first.min() < 40 and 130 < first.max() < 20 + 4 * 33  # the last start is at 4 of 5 s
    np.testing.assert_allclose(np.diff(start.mean((2, 3, 4)) * 127.5, axis=1), 8, atol=2)


def test_a_passing_error_of_the_storage_changes_no_batch(data, tmp_path, monkeypatch):
  whole = take(make_dataset(ONE, str(data), batch_size=4, seed=0), 3)
  monkeypatch.setattr("vidgen.inputs.storage.DELAYS", (0.0,) * 4)
  read, tries = ShardFiles.read, Counter()

  def failing(self, *args):
    call = (threading.get_ident(), *args)  # threads of earlier datasets may read on meanwhile
    tries[call] += 1
    if tries[call] % 3:  # two of three fail
      raise OSError(5, "Input/output error")
    return read(self, *args)

  monkeypatch.setattr(ShardFiles, "read", failing)
  config = dataclasses.replace(ONE, threads=0, prefetch=0)
  path = tmp_path / "quarantine.jsonl"
  dataset = make_dataset(config, str(data), batch_size=4, seed=0, quarantine_path=str(path))
  same(take(dataset, 3), whole)
  assert not path.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_lasting_trouble_with_the_storage_stops_the_run_and_is_no_bad_sample(tmp_path, workers):
  """A shard that goes away: the run ends, for any number of bad samples that are borne."""
  directory = image_set(tmp_path / "data")
  config = dataclasses.replace(ONE, buckets=(IMAGE,), workers=workers)
  path = tmp_path / "quarantine.jsonl"
  dataset = make_dataset(config, str(directory), batch_size=2, seed=0, quarantine_path=str(path))
  (directory / "image" / "train" / "00000.tar").unlink()
  with pytest.raises(DataError, match=r"shard .*image/train/00000.tar.*: reading failed") as caught:
    take(dataset, 1)
  assert not isinstance(caught.value, BadSample)
  assert not path.exists()


def test_a_set_smaller_than_a_batch(data):
  dataset = make_dataset(ONE, str(data), batch_size=50, seed=0)  # repeats within the batch
  assert len(captions(take(dataset, 1))) == 50
  with pytest.raises(DataError, match="12 samples do not fill a batch of 50"):
    make_dataset(ONE, str(data), batch_size=50, seed=0, repeat=False)


def test_an_error_that_is_not_the_samples_names_it_too(data, monkeypatch):
  def broken(*args, **kwargs):
    raise ZeroDivisionError("oops")

  monkeypatch.setattr("vidgen.inputs.loader.decode_video", broken)
  with pytest.raises(DataError, match=r"train/0000\d.tar, key '0000.*ZeroDivisionError: oops"):
    take(make_dataset(ONE, str(data), batch_size=1, seed=0), 1)


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    ({"buckets": []}, "at least one"),
    ({"buckets": [{"name": "a"}, {"name": "a"}]}, "names of their own"),
    ({"buckets": [{"frames": 0}]}, "at least 1"),
    ({"buckets": [{"fps": 0.0}]}, "positive"),
    ({"caption_dropout": 1.5}, "caption_dropout"),
    ({"workers": -1}, "workers"),
    ({"tokenizer": "clip"}, "tokenizer"),
    ({"limits": {"max_bytes": 0}}, "max_bytes"),
    ({"temporal_crop": "end"}, "temporal_crop"),
  ],
)
def test_configs_that_make_no_sense_are_refused(tree, message):
  with pytest.raises(ConfigError, match=message):
    build(InputConfig, tree)


def test_a_config_survives_json():
  assert build(InputConfig, json.loads(json.dumps(plain(MIXED)))) == MIXED
