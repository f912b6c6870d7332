"""Shards as img2dataset, video2dataset and ArrayRecord readers expect them."""

import hashlib
import json
import tarfile

import msgpack
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen.inputs.sources import ArrayRecordSource, TarSource
from vidgen.inputs.writers import Record, sample_key, write_shard
from vidgen.shapes_world.files import ShapesWorldFiles

FILES = ShapesWorldFiles()
VIDEO_KEYS = [
  "url", "caption", "attributes", "impacts", "key", "status", "error_message", "yt_meta_dict",
  "video_metadata", "clips",
]  # fmt: skip
IMAGE_KEYS = [
  "url", "caption", "attributes", "key", "status", "error_message", "width", "height",
  "original_width", "original_height", "exif", "sha256",
]  # fmt: skip


def records(subset="image", count=5, failed=()):
  made = []
  for i in range(count):
    key = sample_key(3, i, shard_size=100)
    record = FILES.record(subset, seed=1, split="train", index=i, key=key)
    if i in failed:
      status, why = "failed_to_download", "HTTP Error 404: Not Found"
      record = Record(key, {}, "", record.columns, record.measured, status, why)
    made.append(record)
  return made


@pytest.mark.parametrize(
  ("subset", "suffix", "keys"), [("video", "mp4", VIDEO_KEYS), ("image", "jpg", IMAGE_KEYS)]
)
def test_members_names_keys_and_siblings(tmp_path, subset, suffix, keys):
  stats = write_shard(tmp_path, records(subset), shard=3)
  assert {p.name for p in tmp_path.iterdir()} == {"00003.tar", "00003.parquet", "00003_stats.json"}
  with tarfile.open(tmp_path / "00003.tar") as tar:
    members = tar.getmembers()
    expected = [f"00003{i:02d}.{s}" for i in range(5) for s in sorted((suffix, "txt", "json"))]
    assert [m.name for m in members] == expected
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    text = tar.extractfile("0000302.json").read().decode()
    caption = tar.extractfile("0000302.txt").read().decode()
  metadata = json.loads(text)
  assert list(metadata) == keys
  assert text == json.dumps(metadata, indent=4)
  assert metadata["caption"] == caption and metadata["status"] == "success"
  table = pq.read_table(tmp_path / "00003.parquet")
  assert table.column_names == keys and len(table) == 5
  row = table.slice(2, 1).to_pylist()[0]
  assert json.loads(row["attributes"]) == metadata["attributes"]
  assert row["error_message"] is None and row["key"] == "0000302"
  late = "failed_to_subsample" if subset == "video" else "failed_to_resize"
  written = json.loads((tmp_path / "00003_stats.json").read_text())
  assert written == stats
  assert list(stats)[:4] == ["count", "successes", "failed_to_download", late]
  assert stats["sha256"] == hashlib.sha256((tmp_path / "00003.tar").read_bytes()).hexdigest()


@pytest.mark.parametrize("storage", ["tar", "array_record"])
def test_failures_have_a_row_and_no_files(tmp_path, storage):
  stats = write_shard(tmp_path, records(failed=(1, 4)), shard=0, storage=storage)
  assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (5, 3, 2)
  assert stats["status_dict"] == {"HTTP Error 404: Not Found": 2, "success": 3}
  status = pq.read_table(tmp_path / "00000.parquet")["status"].to_pylist()
  assert status.count("success") == 3 and status[1] == "failed_to_download"
  path = tmp_path / f"00000.{storage}"
  source = (TarSource if storage == "tar" else ArrayRecordSource)([path], root=tmp_path)
  assert len(source) == 3 and not source.problems
  assert [source[i]["__key__"] for i in range(3)] == ["0000300", "0000302", "0000303"]


def test_array_records_are_msgpack_maps_with_hashes_and_can_be_read_one_by_one(tmp_path):
  from array_record.python import array_record_module

  made = records("video")
  write_shard(tmp_path, made, shard=0, storage="array_record")
  reader = array_record_module.ArrayRecordReader(str(tmp_path / "00000.array_record"))
  assert reader.num_records() == 5
  record = msgpack.unpackb(reader.read([3])[0])
  assert record.pop("__key__") == made[3].key
  digests = record.pop("sha256")
  assert record == made[3].members() and set(record) == {"mp4", "txt", "json"}
  assert digests == {s: hashlib.sha256(data).hexdigest() for s, data in record.items()}
  assert "group_size:1" in reader.writer_options_string()


@pytest.mark.parametrize("storage", ["tar", "array_record"])
def test_the_same_records_give_the_same_bytes(tmp_path, storage):
  for name in ("a", "b"):
    write_shard(tmp_path / name, records("video"), shard=0, storage=storage)
  for name in (f"00000.{storage}", "00000.parquet"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_shard_that_fails_midway_leaves_nothing(tmp_path):
  def broken():
    yield from records()
    raise RuntimeError("the disk is full")

  with pytest.raises(RuntimeError, match="disk"):
    write_shard(tmp_path, broken(), shard=0)
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_a_shard_is_refused(tmp_path):
  good = records()
  with pytest.raises(ValueError, match="occurs twice"):
    write_shard(tmp_path, [good[0], good[0]], shard=0)
  with pytest.raises(ValueError, match="other names"):
    write_shard(tmp_path, [good[0], records("video")[1]], shard=0)
  with pytest.raises(ValueError, match="at least one"):
    write_shard(tmp_path, [], shard=0)
  with pytest.raises(ValueError, match="storage"):
    write_shard(tmp_path, good, shard=0, storage="zip")


@given(st.text(min_size=1, max_size=10))
def test_keys_are_never_paths(key):
  try:
    Record(key, {}, "", {}, {})
  except ValueError:
    return
  assert key.isascii() and not set(key) & set("./\\\n\0 ")


@given(st.integers(0, 99_999), st.integers(2, 10_000), st.data())
def test_keys_have_one_length_and_name_their_shard(shard, size, data):
  index = data.draw(st.integers(0, size - 1))
  key = sample_key(shard, index, shard_size=size)
  assert len(key) == len(sample_key(0, 0, shard_size=size))
  assert (int(key[:5]), int(key[5:])) == (shard, index)
