"""Samples that are missing, changed, repeated or unlike each other are refused by name."""

import dataclasses
import os

import numpy as np
import pytest

from vidgen.errors import DataError
from vidgen.evals.samples import SampleRecord, read_samples, write_records
from vidgen.inputs.storage import file_sha256
from vidgen.media.video import write_mp4
from vidgen.systems import SampleSettings


def write(directory, count=3, *, videos=None, prompts=None, keys=True, fps=4.0, crf=12):
  """A folder of samples as `vidgen sample` leaves it."""
  directory.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  records = []
  for i in range(count):
    video = rng.integers(0, 256, (8, 16, 16, 3), np.uint8) if videos is None else videos[i]
    path = directory / f"{i:05}.mp4"
    write_mp4(path, video, fps=fps, crf=crf)
    records.append(
      SampleRecord(
        index=i,
        key=f"key{i}" if keys else None,
        prompt=prompts[i] if prompts else f"prompt {i}",
        cut=False,
        seed=0,
        step=5,
        weights="ema",
        config_digest="c",
        params_digest="p",
        settings=SampleSettings(),
        file=path.name,
        sha256=file_sha256(path),
        latents_sha256="l",
        frames=len(video),
        height=video.shape[1],
        width=video.shape[2],
        fps=fps,
      )  # fmt: skip
    )
  write_records(directory, records)
  return records


def replace(directory, number, /, **fields):
  records = list(read_samples(directory).records)
  records[number] = dataclasses.replace(records[number], **fields)
  write_records(directory, records)


def test_whole_folders_read_back(tmp_path):
  records = write(tmp_path)
  samples = read_samples(tmp_path)
  assert samples.records == tuple(records)
  assert [v.frames.shape for v in samples.videos()] == [(8, 16, 16, 3)] * 3
  before = samples.digest()
  replace(tmp_path, 1, prompt="another")
  assert read_samples(tmp_path).digest() != before


def damage(directory, kind):
  path = directory / "00001.mp4"
  whole = path.read_bytes()
  if kind == "missing":
    path.unlink()
  elif kind == "changed":
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  elif kind == "linked":
    path.rename(directory / "elsewhere")
    path.symlink_to(directory / "elsewhere")
  elif kind == "cut short":
    path.write_bytes(whole[: len(whole) // 2])
    replace(directory, 1, sha256=file_sha256(path))
  elif kind == "empty":
    path.write_bytes(b"")
    replace(directory, 1, sha256=file_sha256(path))
  elif kind == "another rate":
    write_mp4(path, np.zeros((8, 16, 16, 3), np.uint8), fps=8.0)
    replace(directory, 1, sha256=file_sha256(path))
  elif kind == "another size":
    write_mp4(path, np.zeros((8, 32, 16, 3), np.uint8), fps=4.0)
    replace(directory, 1, sha256=file_sha256(path))
  elif kind == "another length":
    write_mp4(path, np.zeros((9, 16, 16, 3), np.uint8), fps=4.0)
    replace(directory, 1, sha256=file_sha256(path))


KINDS = [
  "missing", "changed", "linked", "cut short", "empty", "another rate", "another size",
  "another length",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_samples_are_refused_by_name_or_handed_on_as_missing(tmp_path, kind):
  write(tmp_path)
  damage(tmp_path, kind)
  with pytest.raises(DataError, match=r"1 of 3 samples cannot be scored: 00001\.mp4: "):
    list(read_samples(tmp_path).videos())
  videos = list(read_samples(tmp_path, allow_missing=True).videos())
  assert [v.frames is None for v in videos] == [False, True, False]
  assert videos[1].problem


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"index": 0}, "index 0 is recorded more than once"),
    ({"key": "key0"}, "key 'key0' is recorded more than once"),
    ({"file": "00000.mp4"}, "file '00000.mp4' is recorded more than once"),
    ({"file": "../00000.mp4"}, "not NUMBER.mp4"),
    ({"file": "/etc/passwd"}, "not NUMBER.mp4"),
    ({"file": "00000.mp4\0"}, "not NUMBER.mp4"),
    ({"file": "00001.mp4\n"}, "not NUMBER.mp4"),
    ({"seed": 1}, "samples differ in seed"),
    ({"step": 6}, "samples differ in step"),
    ({"params_digest": "q"}, "samples differ in params_digest"),
    ({"settings": SampleSettings(steps=3)}, "samples differ in settings"),
    ({"fps": 8.0}, "samples differ in fps"),
  ],
)
def test_records_that_repeat_stray_or_mix_are_refused(tmp_path, fields, message):
  write(tmp_path)
  with pytest.raises(DataError, match=message):
    replace(tmp_path, 1, **fields)
    read_samples(tmp_path)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{", "line 4"),
    ("[]", "line 4: expected a group"),
    ('{"index": 3}', r"line 4\.\w+: missing"),
    ("[" * 100_000, "line 4"),
  ],
)
def test_damaged_lines_are_named(tmp_path, line, message):
  write(tmp_path)
  with open(tmp_path / "samples.jsonl", "a") as file:
    file.write(line + "\n")
  with pytest.raises(DataError, match=message):
    read_samples(tmp_path)


def test_folders_without_records_are_refused(tmp_path):
  with pytest.raises(DataError, match="to its end"):
    read_samples(tmp_path)
  (tmp_path / "samples.jsonl").write_text("")
  with pytest.raises(DataError, match="holds no sample"):
    read_samples(tmp_path)


def test_records_are_whole_or_absent(tmp_path, monkeypatch):
  records = write(tmp_path)
  monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
  (tmp_path / "samples.jsonl").unlink()
  with pytest.raises(OSError, match="disk full"):
    write_records(tmp_path, records)
  assert not (tmp_path / "samples.jsonl").exists()
