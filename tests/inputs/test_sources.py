"""Samples from tars, ArrayRecord and TFDS: the same dicts, damage in its place, cheap to ship."""

import json
import os
import pickle
import shutil
import sys

import grain
import msgpack
import numpy as np
import pytest
from shards import (
  clip_members,
  image_set,
  record_set,
  tfds_set,
  video_set,
  write_parquet,
  write_records,
  write_tar,
)

from vidgen.errors import DataError
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.sources import open_source


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
  return video_set(tmp_path_factory.mktemp("tars"), per_shard=3)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  return record_set(tmp_path_factory.mktemp("records"), per_shard=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tfds_set(tmp_path_factory.mktemp("tfds"), count=6)


@pytest.mark.parametrize("kind", ["tars", "records", "prepared"])
def test_a_source_is_a_random_access_source_that_ships_small(kind, request):
  source = open_source(request.getfixturevalue(kind), subset="video")
  assert isinstance(source, grain.sources.RandomAccessDataSource)
  assert len(source) == 6
  shipped = pickle.dumps(source)
  copy = pickle.loads(shipped)  # noqa: S301  (our own bytes: what a worker process gets)
  assert len(shipped) < 2000
  assert repr(copy) == repr(source) and "0x" not in repr(source)
  assert [copy[i] for i in (4, 0)] == [source[i] for i in (4, 0)]
  assert set(source[0]) >= {"__shard__", "__key__", "mp4", "txt"}
  with pytest.raises(IndexError):
    source[6]


def test_tars_and_records_hold_the_same_samples(tars, records):
  for left, right in zip(
    open_source(tars, subset="video"), open_source(records, subset="video"), strict=True
  ):
    assert left.pop("__shard__") == right.pop("__shard__").replace("array_record", "tar")
    assert left == right


def test_tfds_is_read_without_tensorflow(prepared):
  sample = open_source(prepared, subset="video")[0]
  number = int(sample["__key__"])
  assert {k: v for k, v in sample.items() if k in ("mp4", "txt")} == {
    name.split(".")[1]: data
    for name, data in clip_members(f"{number:05d}", number)
    if not name.endswith("json")
  }
  assert "tensorflow" not in sys.modules


def test_a_folder_of_another_tool_is_read_as_it_lies(tmp_path, tars):
  """Tars directly in the folder, or in a folder per split; other subsets are not made up."""
  for place in (tmp_path / "flat", tmp_path / "split" / "train"):
    shutil.copytree(tars / "video" / "train", place)
  assert len(open_source(tmp_path / "flat", subset="video")) == 6
  assert len(open_source(tmp_path / "split", subset="video")) == 6
  for directory, split in (("flat", "held_out"), ("split", "held_out"), ("nothing", "train")):
    with pytest.raises(DataError):
      open_source(tmp_path / directory, subset="video", split=split)
  (tmp_path / "flat" / "dataset.json").write_text("{}")
  with pytest.raises(DataError, match=r"no \*.tar or \*.array_record for video/train"):
    open_source(tmp_path / "flat", subset="video")


def test_shards_of_two_kinds_in_one_folder_are_refused(tmp_path):
  video_set(tmp_path, shards=1, per_shard=1)
  record_set(tmp_path, shards=1, per_shard=1)
  with pytest.raises(DataError, match="keep one kind"):
    open_source(tmp_path, subset="video")


def test_failed_rows_of_the_parquet_are_not_expected(tmp_path):
  write_tar(tmp_path / "00000.tar", [("a.txt", b"a"), ("b.txt", b"b")])
  write_parquet(
    tmp_path / "00000.parquet", ["b", "x", "a"], status=["success", "failed_to_download", "success"]
  )
  source = open_source(tmp_path, subset="video")
  assert source.problems == []
  assert [source.name(i)[1] for i in range(len(source))] == ["b", "a"]


@pytest.mark.parametrize("sibling", ["parquet", "stats", "none"])
def test_a_cut_shard_is_named_and_where_the_count_is_known_moves_nothing(tmp_path, sibling):
  video_set(tmp_path, shards=2, per_shard=4)
  train = tmp_path / "video" / "train"
  whole = [s["txt"] for s in open_source(tmp_path, subset="video")]
  if sibling != "parquet":
    for path in train.glob("*.parquet"):
      path.unlink()
  if sibling == "stats":
    for shard in range(2):
      (train / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 5, "successes": 4}))
  size = (train / "00000.tar").stat().st_size
  os.truncate(train / "00000.tar", size // 2 // 512 * 512 + 100)
  source = open_source(tmp_path, subset="video")
  assert any("file" in str(p) for p in source.problems)
  assert {p.shard for p in source.problems} == {"video/train/00000.tar"}
  found, lost = [], 0
  for i in range(len(source)):
    try:
      found.append(source[i].get("txt"))
    except BadSample as bad:
      assert bad.shard == "video/train/00000.tar" and bad.key
      found.append(None)
      lost += 1
  assert found[-4:] == whole[-4:]
  if sibling == "none":
    assert lost == 0 and len(source) < 8
  else:
    assert lost >= 1 and len(source) == 8
    assert sum("lost this sample" in p.reason for p in source.problems) == lost


def test_more_samples_than_the_siblings_say_is_a_problem(tmp_path):
  image_set(tmp_path, count=3)
  folder = tmp_path / "image" / "train"
  (folder / "00000_stats.json").write_text(json.dumps({"successes": 2}))
  assert "3 samples, 2 by its _stats.json" in str(open_source(tmp_path, subset="image").problems)
  write_parquet(folder / "00000.parquet", ["00000", "00001"])
  assert "'00002': not in the shard's parquet" in str(
    open_source(tmp_path, subset="image").problems[0]
  )


@pytest.mark.parametrize("name", ["00000.parquet", "00000_stats.json"])
def test_a_damaged_sibling_is_a_data_error(tmp_path, name):
  image_set(tmp_path, count=1)
  (tmp_path / "image" / "train" / name).write_bytes(b"PAR1 not really")
  with pytest.raises(DataError, match=name):
    open_source(tmp_path, subset="image")


def test_flipped_bits_of_a_record_are_found(tmp_path):
  """By the file's own hashes or by the sha256 in the record: never read as good."""
  record_set(tmp_path, shards=1, per_shard=4)
  path = tmp_path / "video" / "train" / "00000.array_record"
  good = path.read_bytes()
  expected = list(open_source(tmp_path, subset="video"))
  rng, wrong = np.random.default_rng(0), 0
  used = np.flatnonzero(np.frombuffer(good, np.uint8))  # the rest is the padding of the blocks
  for _ in range(40):
    data = bytearray(good)
    data[rng.choice(used)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    try:
      source = open_source(tmp_path, subset="video")
      for i, sample in enumerate(expected):
        try:
          assert source[i] == sample
        except BadSample as bad:
          assert bad.shard == "video/train/00000.array_record" and bad.key
          wrong += 1
    except DataError as error:
      assert "00000.array_record" in str(error)
      wrong += 1
  assert wrong > 30


def test_a_cut_array_record_is_a_data_error(tmp_path):
  record_set(tmp_path, shards=1, per_shard=4)
  path = tmp_path / "video" / "train" / "00000.array_record"
  os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(DataError, match="00000.array_record"):
    open_source(tmp_path, subset="video")


def test_a_record_whose_bytes_are_not_its_sha256_is_bad(tmp_path):
  path = tmp_path / "video" / "train" / "00000.array_record"
  write_records(path, {"a": {"txt": b"good"}})
  packed = msgpack.packb({"__key__": "a", "txt": b"evil", "sha256": {"txt": "0" * 64}})
  write_raw(path, [packed, b"\xc1", msgpack.packb([1]), msgpack.packb({"__key__": "b"})])
  source = open_source(tmp_path, subset="video")
  reasons = []
  for i in range(4):
    with pytest.raises(BadSample) as caught:
      source[i]
    reasons.append(str(caught.value))
  assert "key 'a': the sha256 of .txt differs" in reasons[0]
  assert "not a msgpack map" in reasons[1] and "no __key__" in reasons[2]
  assert "no sha256" in reasons[3]


def write_raw(path, records):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def test_a_record_count_that_is_not_the_parquets_is_a_problem(tmp_path):
  record_set(tmp_path, shards=1, per_shard=3)
  write_parquet(tmp_path / "video" / "train" / "00000.parquet", ["a", "b", "c", "d"])
  assert "3 records, 4 by its siblings" in str(open_source(tmp_path, subset="video").problems)


def test_an_empty_tar_is_a_data_error(tmp_path):
  write_tar(tmp_path / "00000.tar", [])
  with pytest.raises(DataError, match="no sample"):
    open_source(tmp_path, subset="video")


def test_a_shard_that_goes_away_is_named_and_costs_no_sample(tmp_path):
  source = open_source(image_set(tmp_path, count=2), subset="image")
  (tmp_path / "image" / "train" / "00000.tar").unlink()
  with pytest.raises(DataError, match="00000.tar, key '00001': reading failed") as caught:
    source[1]
  assert not isinstance(caught.value, BadSample)
