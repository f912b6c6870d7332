"""The facts of clips and images, and the files that keep them."""

import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batches import ONE
from shards import clip_members, frame, image_set, jpeg, mp4, record_set, video_set, write_tar

from vidgen.inputs import clip_index
from vidgen.inputs.clip_facts import ClipFacts, measure_sample
from vidgen.inputs.clip_index import FOLDER, load_clip_index
from vidgen.inputs.decode import Limits, decode_video
from vidgen.inputs.decode_image import decode_image
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.sources import open_source

LIMITS = ONE.limits


@pytest.mark.parametrize(
  ("count", "options"),
  [
    (16, {}),
    (5, {"fps": 24}),
    (6, {"rotate": 90}),
    (6, {"rotate": 180}),
    (4, {"stamps": [0, 1, 5, 12], "fps": 10}),  # rates that vary
    (1, {"fps": 8}),
  ],
)
def test_a_videos_facts_are_those_of_its_decoded_frames(count, options):
  data = mp4([frame(9 * i, size=(32, 48)) for i in range(count)], **options)
  clip = decode_video(data)
  facts = measure_sample({"mp4": data}, limits=LIMITS)
  height, width = clip.frames.shape[1:3]
  assert facts == ClipFacts(width, height, clip.duration, count / clip.duration)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_images_size_is_that_of_the_upright_picture(orientation):
  from PIL import Image

  exif = Image.Exif()
  exif[0x0112] = orientation
  data = jpeg(frame(9, size=(20, 30)), exif=exif)
  height, width = decode_image(data).frames.shape[1:3]
  assert measure_sample({"jpg": data}, limits=LIMITS) == ClipFacts(width, height)


@pytest.mark.parametrize(
  "sample",
  [
    {"txt": b"no media"},
    {"mp4": b""},
    {"mp4": b"<html>"},
    {"mp4": mp4([frame(9)] * 16)[:-600]},
    {"jpg": b"GIF89a"},
    {"mp4": mp4([frame(9, size=(64, 64))] * 2)},
    {"jpg": jpeg(frame(9, size=(64, 64)))},
  ],
)
def test_what_cannot_be_read_is_a_bad_sample(sample):
  with pytest.raises(BadSample):
    measure_sample(sample, limits=Limits(max_pixels=63 * 64))


@pytest.fixture
def measured(monkeypatch):
  """The numbers of the samples that are measured, as they are."""
  numbers = []
  real = clip_index._facts

  def counting(source, limits, number):
    numbers.append(number)
    return real(source, limits, number)

  monkeypatch.setattr(clip_index, "_facts", counting)
  return numbers


def video_source(root):
  return open_source(root, subset="video", split="train")


@pytest.mark.parametrize("make", [video_set, record_set], ids=["tar", "array_record"])
def test_each_sample_is_measured_once_and_only_a_changed_shard_again(tmp_path, make, measured):
  make(tmp_path, shards=2, per_shard=3)
  first = load_clip_index(tmp_path, video_source(tmp_path), limits=LIMITS)
  assert sorted(measured) == list(range(6)) and not first.bad
  np.testing.assert_allclose(first.rows["seconds"], 2.0)
  np.testing.assert_allclose(first.rows["rate"], 8.0)
  assert set(first.rows["width"].tolist()) == set(first.rows["height"].tolist()) == {32}
  measured.clear()
  again = load_clip_index(tmp_path, video_source(tmp_path), limits=LIMITS)
  assert not measured and (again.rows == first.rows).all()
  make(tmp_path / "other", shards=2, per_shard=3, frames=8)
  shard = sorted((tmp_path / "other/video/train").glob("00001.[at]*"))[0]
  os.replace(shard, tmp_path / "video/train" / shard.name)
  changed = load_clip_index(tmp_path, video_source(tmp_path), limits=LIMITS)
  assert sorted(measured) == [3, 4, 5]
  np.testing.assert_allclose(changed.rows["seconds"], [2.0] * 3 + [1.0] * 3)


def test_bad_samples_are_named_each_time_and_other_limits_measure_again(tmp_path, measured):
  members = [*clip_members("a", 0), ("b.mp4", b"x"), ("b.txt", b"b"), *clip_members("c", 2)]
  write_tar(tmp_path / "video/train/00000.tar", members)
  for _ in range(2):
    index = load_clip_index(tmp_path, video_source(tmp_path), limits=LIMITS)
    assert list(index.bad) == [1] and index.rows["width"].tolist() == [32, 0, 32]
    assert "shard video/train/00000.tar, key 'b': not decodable" in str(index.bad[1])
  assert len(measured) == 3
  strict = dataclasses.replace(LIMITS, max_frames=15)
  index = load_clip_index(tmp_path, video_source(tmp_path), limits=strict)
  assert set(index.bad) == {0, 1, 2} and len(measured) == 6


def test_a_damaged_file_is_found_and_made_anew(tmp_path, measured):
  video_set(tmp_path, shards=1, per_shard=3)
  source = video_source(tmp_path)
  whole = load_clip_index(tmp_path, source, limits=LIMITS)
  (path,) = (p for p in (tmp_path / FOLDER).rglob("*") if p.is_file())
  content = path.read_bytes()
  flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in (0, 70, 300, -3)]
  for damaged in (*flipped, b"", b"\n\n", content[:-8], content[:100], content + b"x"):
    path.write_bytes(damaged)
    measured.clear()
    again = load_clip_index(tmp_path, source, limits=LIMITS)
    assert len(measured) == 3 and (again.rows == whole.rows).all()
    assert path.read_bytes() == content


def test_measuring_goes_on_where_it_was_stopped(tmp_path, monkeypatch, measured):
  video_set(tmp_path, shards=3, per_shard=2)
  source = video_source(tmp_path)
  real = clip_index._write

  def stop_after_one(*arguments):
    real(*arguments)
    raise KeyboardInterrupt

  monkeypatch.setattr(clip_index, "_write", stop_after_one)
  with pytest.raises(KeyboardInterrupt):
    load_clip_index(tmp_path, source, limits=LIMITS)
  assert len(measured) == 2
  monkeypatch.setattr(clip_index, "_write", real)
  load_clip_index(tmp_path, source, limits=LIMITS)
  assert sorted(measured) == list(range(6))


def test_a_folder_that_cannot_be_written_is_measured_each_time(tmp_path, monkeypatch, measured):
  image_set(tmp_path, count=2)
  (tmp_path / FOLDER).write_text("in the way")
  told = []
  monkeypatch.setattr(sys.stderr, "write", told.append)
  for _ in range(2):
    index = load_clip_index(
      tmp_path, open_source(tmp_path, subset="image", split="train"), limits=LIMITS
    )
    assert index.rows["width"].tolist() == [32, 32] and not index.rows["rate"].any()
  assert len(measured) == 4 and "not kept" in "".join(told)


def test_processes_that_measure_at_the_same_time_leave_whole_files(tmp_path, measured):
  """As threads, which write as processes do: the file of a shard is one of theirs."""
  video_set(tmp_path, shards=4, per_shard=2)
  with ThreadPoolExecutor(3) as pool:
    sources = [video_source(tmp_path) for _ in range(3)]
    found = list(pool.map(lambda s: load_clip_index(tmp_path, s, limits=LIMITS), sources))
  assert all((one.rows == found[0].rows).all() for one in found)
  assert sorted(p.suffix for p in (tmp_path / FOLDER).rglob("*.*")) == [".clips"] * 4
  measured.clear()
  load_clip_index(tmp_path, sources[0], limits=LIMITS)
  assert not measured
