"""Bad samples and clips that are too short: replaced by others, told apart, and named."""

import dataclasses
import io
import json

import numpy as np
import pytest
from batches import IMAGE, ONE, VIDEO, captions, same, take
from PIL import Image
from shards import (
  clip_members,
  frame,
  image_set,
  jpeg,
  mp4,
  video_set,
  write_parquet,
  write_tar,
)

from vidgen.errors import DataError
from vidgen.inputs.config import Bucket
from vidgen.inputs.loader import Plan
from vidgen.inputs.pipeline import make_dataset
from vidgen.inputs.quarantine import BadSample


def bomb() -> bytes:
  buffer = io.BytesIO()
  Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
  return buffer.getvalue()


def clip_of(**kinds):
  rng = np.random.default_rng(0)
  return mp4([rng.integers(0, 255, (32, 32, 3), np.uint8) for _ in range(16)], **kinds)


HTML = b"<html>404</html>"
BAD_VIDEOS = {
  "truncated moov at the end": lambda m: {**m, "mp4": clip_of()[:9000]},
  "truncated faststart": lambda m: {**m, "mp4": clip_of(faststart=True)[:9000]},
  "empty": lambda m: {**m, "mp4": b""},
  "html": lambda m: {**m, "mp4": HTML},
  "no caption": lambda m: {"mp4": m["mp4"], "json": m["json"]},
  "blank caption": lambda m: {**m, "txt": b" \n"},
  "caption not UTF-8": lambda m: {**m, "txt": b"\xff\xfe\x00"},
  "one frame": lambda m: {**m, "mp4": mp4([frame(9)])},
  "huge": lambda m: {**m, "mp4": mp4([frame(9, size=(1088, 1920))] * 2)},
  "no media": lambda m: {"txt": m["txt"], "json": m["json"]},
  "an image": lambda m: {"jpg": jpeg(frame(9)), "txt": m["txt"], "json": m["json"]},
}
BAD_IMAGES = {
  "truncated": lambda m: {**m, "jpg": m["jpg"][:-200]},
  "empty": lambda m: {**m, "jpg": b""},
  "html": lambda m: {**m, "jpg": HTML},
  "bomb": lambda m: {"png": bomb(), "txt": m["txt"]},
  "wrong size": lambda m: {**m, "jpg": jpeg(frame(9, size=(1100, 1100)))},
}


def damaged(root, kinds, subset):
  """One tar of good samples in which sample 2 i + 1 has the i-th damage; the keys of the bad."""
  members, keys, bad = [], [], []
  for i in range(2 * len(kinds) + 4):
    key = f"{i:05d}"
    if subset == "video":
      sample = {n.split(".")[1]: d for n, d in clip_members(key, i)}
    else:
      sample = {"jpg": jpeg(np.full((32, 32, 3), 7 * i, np.uint8)), "txt": b"image %d" % i}
    if i % 2 and i // 2 < len(kinds):
      sample = list(kinds.values())[i // 2](sample)
      bad.append(key)
    members += [(f"{key}.{suffix}", data) for suffix, data in sample.items()]
    keys.append(key)
  write_tar(root / subset / "train" / "00000.tar", members)
  write_parquet(root / subset / "train" / "00000.parquet", keys)
  return bad


@pytest.mark.parametrize("cache_bytes", [0, 1 << 22], ids=["plain", "cached"])
@pytest.mark.parametrize("subset", ["video", "image"])
def test_bad_samples_are_quarantined_by_name_and_the_others_stay_where_they_are(
  tmp_path, subset, cache_bytes
):
  kinds = BAD_VIDEOS if subset == "video" else BAD_IMAGES
  bad = damaged(tmp_path / "bad", kinds, subset)
  damaged(tmp_path / "good", {name: lambda m: m for name in kinds}, subset)
  bucket = VIDEO if subset == "video" else IMAGE
  limits = dataclasses.replace(ONE.limits, max_pixels=1000 * 1000)
  config = dataclasses.replace(ONE, buckets=(bucket,), cache_bytes=cache_bytes, limits=limits)
  path = tmp_path / "quarantine.jsonl"
  count = 2 * len(kinds) + 4
  epochs = 3
  found, good = (
    take(
      make_dataset(
        config, str(tmp_path / name), batch_size=count, seed=0, quarantine_path=str(tmp_path / file)
      ),
      epochs,
    )
    for name, file in (("bad", "quarantine.jsonl"), ("good", "none.jsonl"))
  )
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert sorted(line["key"] for line in lines) == bad  # each once, whatever the epochs
  assert {line["shard"] for line in lines} == {f"{subset}/train/00000.tar"}
  assert all(line["reason"] for line in lines)
  assert not (tmp_path / "none.jsonl").exists()
  replaced = 0
  for left, right in zip(found, good, strict=True):
    names = captions([right])
    for i, name in enumerate(names):
      if f"{int(name.split()[1]):05d}" in bad:
        replaced += 1
        assert captions([left])[i] != name
      else:
        np.testing.assert_array_equal(left["video"][i], right["video"][i])
        np.testing.assert_array_equal(left["text"][i], right["text"][i])
  assert replaced == epochs * len(bad)


def test_a_bad_sample_that_is_known_holds_on_to_nothing(tmp_path):
  """Each meeting with it raises anew; a kept traceback would grow, and keep the sample's bytes."""
  damaged(tmp_path, BAD_IMAGES, "image")
  limits = dataclasses.replace(ONE.limits, max_pixels=1000 * 1000)
  config = dataclasses.replace(ONE, buckets=(IMAGE,), limits=limits, cache_bytes=1 << 20)
  loader = make_dataset(config, str(tmp_path), batch_size=2, seed=0)._batches._map_fn
  for number in range(3):
    loader(Plan("image", np.arange(14) + 14 * number, np.arange(14)))
  known = [value for value in loader._cache.values() if isinstance(value, BadSample)]
  assert len(known) == 5 and all(bad.__traceback__ is None for bad in known)


def test_replacements_are_the_same_on_any_path_to_them(tmp_path):
  damaged(tmp_path, BAD_IMAGES, "image")
  config = dataclasses.replace(
    ONE, buckets=(IMAGE,), limits=dataclasses.replace(ONE.limits, max_pixels=1000 * 1000)
  )
  dataset = make_dataset(config, str(tmp_path), batch_size=4, seed=3)
  whole = take(dataset, 10)
  resumed = iter(dataset)
  resumed.set_state({**resumed.get_state(), "position": 7})
  same([next(resumed) for _ in range(3)], whole[7:])
  threads = dataclasses.replace(config, threads=4, prefetch=8)
  same(take(make_dataset(threads, str(tmp_path), batch_size=4, seed=3), 10), whole)


def test_too_many_bad_samples_stop_the_run(tmp_path):
  bad = damaged(tmp_path, BAD_IMAGES, "image")
  limits = dataclasses.replace(ONE.limits, max_pixels=1000 * 1000)
  config = dataclasses.replace(ONE, buckets=(IMAGE,), limits=limits)
  for change, allowed in (({"bad_count": 3}, 3), ({"bad_fraction": 0.3}, 4), ({"bad_count": 5}, 5)):
    dataset = make_dataset(
      dataclasses.replace(config, **change), str(tmp_path), batch_size=2, seed=0
    )
    if allowed >= len(bad):
      take(dataset, 20)
      continue
    with pytest.raises(
      DataError, match=rf"bad samples, of 14, .* {allowed} allowed.*00000.tar, key"
    ):
      take(dataset, 20)


def test_known_damage_counts_before_the_first_batch(tmp_path):
  video_set(tmp_path, shards=1, per_shard=4)
  train = tmp_path / "video" / "train"
  write_parquet(train / "00000.parquet", [f"{i:09d}" for i in range(4)] + ["x", "y"])
  with pytest.raises(DataError, match="2 bad samples, of 6.*'x': the shard has lost"):
    make_dataset(dataclasses.replace(ONE, bad_count=1), str(tmp_path), batch_size=2, seed=0)


def test_nothing_but_bad_samples_ends_with_an_error(tmp_path):
  write_tar(tmp_path / "image" / "train" / "0.tar", [("a.jpg", HTML), ("a.txt", b"a")])
  config = dataclasses.replace(ONE, buckets=(IMAGE,))
  with pytest.raises(DataError, match="in a row; the last: shard image/train/0.tar, key 'a'"):
    take(make_dataset(config, str(tmp_path), batch_size=1, seed=0), 1)


LONG = Bucket(name="long", frames=16, height=16, width=16, fps=8.0)  # more than 1.875 s
BRIEF = Bucket(name="brief", frames=4, height=16, width=16, fps=8.0)  # more than 0.375 s
LENGTHS = dataclasses.replace(ONE, buckets=(LONG, BRIEF), bad_count=0)


def lengths(root, *frames):
  """A tar of clips at 8 fps with so many frames; clip i has the caption "clip i"."""
  members = []
  for i, count in enumerate(frames):
    members += clip_members(f"{i:05d}", i, frames=count)
  write_tar(root / "video" / "train" / "00000.tar", members)
  return str(root)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 22, 12_000], ids=["plain", "cached", "full"])
def test_a_clip_too_short_for_one_bucket_only_is_no_bad_sample(tmp_path, cache_bytes):
  """The long bucket takes others in its place, the brief one takes it; no budget is charged."""
  directory = lengths(tmp_path / "data", 8, 24, 8, 8, 24, 8)
  config = dataclasses.replace(LENGTHS, cache_bytes=cache_bytes)
  path = tmp_path / "quarantine.jsonl"
  dataset = make_dataset(config, directory, batch_size=6, seed=0, quarantine_path=str(path))
  taken = take(dataset, 6)
  names = {t: set(captions(b for b in taken if b["video"].shape[1] == t)) for t in (16, 4)}
  assert names == {16: {"clip 1", "clip 4"}, 4: {f"clip {i}" for i in range(6)}}
  assert not path.exists() and dataset.quarantine.count() == 0


@pytest.mark.parametrize("cache_bytes", [0, 1 << 22], ids=["plain", "cached"])
def test_a_clip_too_short_for_every_bucket_of_its_subset_is_bad(tmp_path, cache_bytes):
  directory = lengths(tmp_path / "data", 8, 24, 3, 24)
  still = dataclasses.replace(LONG, name="image", subset="image", frames=1)  # of another subset
  image_set(tmp_path / "data", count=4)
  config = dataclasses.replace(
    LENGTHS, buckets=(LONG, BRIEF, still), bad_count=1, cache_bytes=cache_bytes
  )
  path = tmp_path / "quarantine.jsonl"
  take(make_dataset(config, directory, batch_size=4, seed=0, quarantine_path=str(path)), 9)
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(line["shard"], line["key"]) for line in lines] == [("video/train/00000.tar", "00002")]
  assert "0.375 s is too short" in lines[0]["reason"]


def test_images_among_clips_are_for_the_buckets_of_one_frame(tmp_path):
  write_tar(
    tmp_path / "video" / "train" / "00000.tar",
    [*clip_members("00000", 0), ("00001.jpg", jpeg(frame(9))), ("00001.txt", b"image 1")],
  )
  still = dataclasses.replace(BRIEF, name="still", frames=1)
  config = dataclasses.replace(LENGTHS, buckets=(BRIEF, still))
  taken = take(make_dataset(config, str(tmp_path), batch_size=4, seed=0), 4)
  names = {t: set(captions(b for b in taken if b["video"].shape[1] == t)) for t in (4, 1)}
  assert names == {4: {"clip 0"}, 1: {"clip 0", "image 1"}}


def test_what_comes_in_place_of_a_short_clip_is_the_same_on_any_path_to_it(tmp_path):
  directory = lengths(tmp_path, 8, 24, 8, 24, 8, 8)
  dataset = make_dataset(LENGTHS, directory, batch_size=4, seed=3)
  whole = take(dataset, 8)
  resumed = iter(dataset)
  resumed.set_state({**resumed.get_state(), "position": 5})
  same([next(resumed) for _ in range(3)], whole[5:])
  for change in ({"threads": 4, "prefetch": 8}, {"cache_bytes": 1 << 22}):
    config = dataclasses.replace(LENGTHS, **change)
    same(take(make_dataset(config, directory, batch_size=4, seed=3), 8), whole)


def test_a_rare_long_bucket_draws_as_often_as_it_must(tmp_path, monkeypatch):
  """Short clips do not count as bad ones in a row, but have a bound of their own."""
  monkeypatch.setattr("vidgen.inputs.loader.REDRAWS", 1)
  directory = lengths(tmp_path / "rare", *[8] * 9, 24)
  config = dataclasses.replace(LENGTHS, cache_bytes=1 << 22)
  taken = take(make_dataset(config, directory, batch_size=20, seed=0), 2)
  assert {frozenset(captions([b])) for b in taken if b["video"].shape[1] == 16} == {
    frozenset({"clip 9"})
  }
  monkeypatch.setattr("vidgen.inputs.loader.SHORT_REDRAWS", 20)
  directory = lengths(tmp_path / "none", 8, 8)
  with pytest.raises(DataError, match="bucket 'long': 20 samples in a row are too short") as caught:
    take(make_dataset(config, directory, batch_size=2, seed=0), 2)
  assert not isinstance(caught.value, BadSample)
