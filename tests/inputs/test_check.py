"""`check_dataset` decodes everything once and names what is wrong."""

import json
import os

import numpy as np
import pytest
from shards import clip_members, image_set, jpeg, mp4, record_set, video_set, write_tar

from vidgen.errors import DataError
from vidgen.inputs.check import check_dataset
from vidgen.inputs.writers import Record, write_shard


def test_a_sound_set_is_counted(tmp_path):
  image_set(video_set(tmp_path, shards=2, per_shard=3), count=4)
  image_set(tmp_path, count=2, split="held_out")
  seen = []
  report = check_dataset(tmp_path, processes=1, progress=lambda done, of: seen.append((done, of)))
  assert report["bad"] == [] and report["samples"] == 12 and seen[-1] == (12, 12)
  assert sorted(report["subsets"]) == ["image/held_out", "image/train", "video/train"]
  video = report["subsets"]["video/train"]
  assert (video["samples"], video["frames"], video["seconds"]) == (6, 96, 12.0)
  assert json.loads(json.dumps(report)) == report


def test_processes_change_nothing(tmp_path):
  image_set(tmp_path, count=150)
  image_set(tmp_path, count=10, split="held_out")
  assert check_dataset(tmp_path, processes=2) == check_dataset(tmp_path, processes=1)


def test_tar_and_array_record_have_one_digest(tmp_path):
  video_set(tmp_path / "a", per_shard=2)
  record_set(tmp_path / "b", per_shard=2)
  left, right = (check_dataset(tmp_path / n, processes=1)["subsets"]["video/train"] for n in "ab")
  assert left["sha256"] == right["sha256"] and left["bytes"] == right["bytes"]


def test_every_bad_sample_is_named_also_behind_what_training_reads(tmp_path):
  """A clip whose last frames are damaged, a caption that is missing, JSON that is none."""
  rng = np.random.default_rng(0)
  clip = bytearray(
    mp4([rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(32)], faststart=True)
  )
  clip[-4000:] = bytes(4000)
  members = []
  for i in range(5):
    sample = {n.split(".")[1]: d for n, d in clip_members(f"{i:05d}", i)}
    if i == 1:
      sample["mp4"] = bytes(clip)
    elif i == 2:
      del sample["txt"]
    elif i == 3:
      sample["json"] = b"{"
    members += [(f"{i:05d}.{suffix}", data) for suffix, data in sample.items()]
  write_tar(tmp_path / "00000.tar", members)  # a plain folder of another tool
  report = check_dataset(tmp_path, processes=1)
  reasons = {entry["key"]: entry["reason"] for entry in report["bad"]}
  assert sorted(reasons) == ["00001", "00002", "00003"]
  assert ".mp4: not decodable" in reasons["00001"]
  assert reasons["00002"] == "missing caption" and reasons["00003"].startswith(
    ".json: not readable"
  )
  assert {entry["shard"] for entry in report["bad"]} == {"00000.tar"}
  assert report["subsets"]["train"]["bad"] == 3


def test_lost_samples_are_listed_once(tmp_path):
  video_set(tmp_path, shards=1, per_shard=4)
  path = tmp_path / "video" / "train" / "00000.tar"
  os.truncate(path, path.stat().st_size // 2)
  bad = check_dataset(tmp_path, processes=1)["bad"]
  keys = [entry["key"] for entry in bad if entry["key"]]
  assert len(keys) == len(set(keys)) >= 1
  assert [entry for entry in bad if not entry["key"]]  # and the cut itself


def written(folder, files):
  """A shard of `write_shard` with one sample of these files; its path."""
  record = Record("000000", files, "a caption", {}, {})
  write_shard(folder, [record], shard=0)
  return folder / "00000.tar"


@pytest.mark.parametrize("suffix", ["jpg", "mp4"])
def test_a_flipped_bit_that_still_decodes_is_found_in_its_shard(tmp_path, suffix):
  rng = np.random.default_rng(0)
  noise = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(4)]
  payload = jpeg(noise[0]) if suffix == "jpg" else mp4(noise)
  folder = tmp_path / "video" / "train"
  shard = written(folder, {suffix: payload})
  written(tmp_path / "video" / "held_out", {suffix: payload})
  assert check_dataset(tmp_path, processes=1)["bad"] == []
  data = bytearray(shard.read_bytes())
  at = data.index(payload) + (payload.index(b"mdat") if suffix == "mp4" else 0) + 1500
  flipped = None
  for i in range(at, at + 200):  # one whose damage no decoder sees
    flipped = bytes(data[:i]) + bytes([data[i] ^ 1]) + bytes(data[i + 1 :])
    shard.write_bytes(flipped)
    stats = (folder / "00000_stats.json").read_text()
    (folder / "00000_stats.json").unlink()
    silent = not check_dataset(tmp_path, processes=1)["bad"]
    (folder / "00000_stats.json").write_text(stats)
    if silent:
      break
  else:
    pytest.fail("every flip was seen by the decoder")
  report = check_dataset(tmp_path, processes=1)
  assert report["bad"] == [
    {
      "shard": "video/train/00000.tar",
      "key": "",
      "reason": "its sha256 differs from the one in 00000_stats.json",
    }
  ]
  assert report["subsets"]["video/train"]["bad"] == 1
  (tmp_path / "dataset.json").write_text('{"shards": [{"path": "video/train/00000.tar"}]}')
  assert check_dataset(tmp_path, processes=1)["bad"] == []  # `verify_shards` is to find it


def test_a_digest_that_cannot_be_read_is_a_problem_and_one_that_is_missing_is_none(tmp_path):
  shard = written(tmp_path, {"jpg": jpeg(np.zeros((32, 32, 3), np.uint8))})
  stats = shard.with_name("00000_stats.json")
  stats.write_text('{"count": 1, "successes": 1}')  # as img2dataset leaves it
  assert check_dataset(tmp_path, processes=1)["bad"] == []
  stats.write_text("{")
  (bad,) = check_dataset(tmp_path, processes=1)["bad"]
  assert bad["shard"] == "00000.tar" and "00000_stats.json is not readable" in bad["reason"]


def test_nothing_to_check_is_an_error(tmp_path):
  with pytest.raises(DataError):
    check_dataset(tmp_path / "nowhere")
  with pytest.raises(DataError):
    check_dataset(tmp_path)
