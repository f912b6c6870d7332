"""Any folder of media is a set in a fixed order; what cannot be scored is named."""

import os
import shutil

import numpy as np
import pytest
from media_sets import clips, write_clips, write_sequences, write_sounds
from test_samples import write as write_samples

from vidgen.errors import ConfigError, DataError
from vidgen.evals.clips import ClipRule
from vidgen.evals.folders import open_media, read_frames, read_sound
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.writers import write_shard
from vidgen.media.video import write_mp4
from vidgen.shapes_world.files import ShapesWorldFiles

VIDEOS = clips(3, frames=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Clips in folders of their classes."""
  root = tmp_path_factory.mktemp("clips")
  for i, video in enumerate(VIDEOS):
    write_clips(root / f"class{i % 2}", [video], name=lambda _, i=i: f"clip{i}")
  (root / "class0" / "clip0.txt").write_text("a blob\n")
  (root / ".DS_Store").write_text("of another system")
  return root


def whole(folder, index=0):
  item = open_media(folder, need="video").items[index]
  return read_frames(item, ClipRule()).frames


def test_a_hidden_folder_is_no_part_of_a_set_and_one_that_cannot_be_listed_is_named(
  folder, tmp_path, monkeypatch
):
  copy = shutil.copytree(folder, tmp_path / "copy")
  shutil.copytree(copy / "class0", copy / ".thumbnails")
  found = open_media(copy, need="video")
  assert found.digest == open_media(folder, need="video").digest and found.formats == "mp4"
  scandir = os.scandir

  def locked(path):
    if str(path).endswith("class1"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", locked)
  with pytest.raises(DataError, match="class1: Permission denied"):
    open_media(copy, need="video")


def test_clips_of_all_folders_are_in_the_order_of_their_names(folder):
  found = open_media(folder, need="video")
  assert found.names == ("class0/clip0", "class0/clip2", "class1/clip1")
  assert [item.text() for item in found.items] == ["a blob", None, None]
  assert whole(folder).shape == (20, 16, 16, 3)


def test_the_digest_is_of_names_and_content_alone(folder, tmp_path):
  digest = open_media(folder, need="video").digest
  copy = shutil.copytree(folder, tmp_path / "copy")
  assert open_media(copy, need="video").digest == digest
  os.rename(copy / "class0" / "clip2.mp4", copy / "class0" / "clip3.mp4")
  assert open_media(copy, need="video").digest != digest
  os.rename(copy / "class0" / "clip3.mp4", copy / "class0" / "clip2.mp4")
  path = copy / "class1" / "clip1.mp4"
  path.write_bytes(path.read_bytes() + b"\0")
  assert open_media(copy, need="video").digest != digest


@pytest.mark.parametrize(
  ("rule", "chosen"),
  [
    (ClipRule(frames=8), range(8)),
    (ClipRule("centre", frames=8), range(6, 14)),
    (ClipRule(frames=8, fps=4.0), range(0, 16, 2)),
    (ClipRule("centre", frames=8, fps=4.0), range(2, 18, 2)),
    (ClipRule(frames=4, fps=16.0), [0, 0, 1, 1]),
    (ClipRule(fps=4.0), range(0, 20, 2)),
  ],
)
def test_clips_are_cut_by_the_rule(folder, rule, chosen):
  item = open_media(folder, need="video").items[0]
  found = read_frames(item, rule)
  np.testing.assert_array_equal(found.frames, whole(folder)[list(chosen)])
  assert found.fps == (rule.fps or 8.0)


def test_random_clips_are_of_the_seed_and_the_name_alone(folder, tmp_path):
  rule = ClipRule("random", frames=4, seed=3)
  items = open_media(folder, need="video").items
  copy = shutil.copytree(folder, tmp_path / "copy")
  (copy / "class0" / "clip0.mp4").unlink()
  others = open_media(copy, need="video").items
  np.testing.assert_array_equal(
    read_frames(items[2], rule).frames, read_frames(others[1], rule).frames
  )
  starts = {ClipRule("random", frames=4, seed=s).draw(items[0].name) for s in range(20)}
  assert len(starts) == 20 and min(starts) < 0.2 and max(starts) > 0.8


def test_folders_of_pictures_are_clips_in_the_order_of_their_numbers(tmp_path):
  found = open_media(write_sequences(tmp_path, VIDEOS), need="video")
  assert found.names == ("0000", "0001", "0002")
  for item, video in zip(found.items, VIDEOS, strict=True):
    np.testing.assert_array_equal(read_frames(item, ClipRule()).frames, video)
  rule = ClipRule(frames=4, fps=4.0, sequence_fps=8.0)
  np.testing.assert_array_equal(read_frames(found.items[0], rule).frames, VIDEOS[0][:8:2])
  assert read_frames(found.items[0], ClipRule(frames=4)).fps == 0
  with pytest.raises(ConfigError, match="state it with --sequence-fps"):
    read_frames(found.items[0], ClipRule(frames=4, fps=4.0))
  pictures = open_media(tmp_path, need="image")
  assert len(pictures) == 60 and pictures.names[0] == "0000/0"


def test_sound_is_read_from_wav_files_and_from_clips(tmp_path):
  found = open_media(write_sounds(tmp_path / "wav", 2), need="audio")
  assert read_sound(found.items[0]).sample_rate == 16_000
  (tmp_path / "mp4").mkdir()
  tone = 0.3 * np.sin(2 * np.pi * 400 * np.arange(48_000) / 48_000).astype(np.float32)
  write_mp4(tmp_path / "mp4" / "a.mp4", VIDEOS[0], fps=20.0, audio=tone)
  sound = read_sound(open_media(tmp_path / "mp4", need="audio").items[0])
  loudest = np.argmax(np.abs(np.fft.rfft(sound.samples[:48_000, 0])))
  assert (sound.sample_rate, loudest) == (48_000, 400)


@pytest.mark.parametrize("storage", ["tar", "array_record"])
def test_data_sets_give_clips_frames_and_sounds_of_a_subset_and_split(tmp_path, storage):
  files = ShapesWorldFiles()
  for subset, split in (("video", "held_out"), ("video", "train"), ("image", "held_out")):
    records = [
      files.record(subset, seed=0, split=split, index=i, key=f"{split}{i}") for i in range(2)
    ]
    write_shard(tmp_path / subset / split, records, shard=0, storage=storage)
  found = open_media(tmp_path, need="video")
  clip = read_frames(found.items[0], ClipRule(frames=8))
  assert len(found) == 2 and clip.frames.shape == (8, 64, 64, 3) and clip.fps == 8
  assert found.items[0].text()
  assert read_frames(open_media(tmp_path, need="image").items[1], ClipRule()).frames.shape[0] == 1
  sound = open_media(tmp_path, need="audio", subset="video")
  assert read_sound(sound.items[0]).sample_rate == 48_000
  frames = open_media(tmp_path, need="image", subset="video")
  assert read_frames(frames.items[0], ClipRule()).frames.shape[0] == 16
  train = open_media(tmp_path, need="video", split="train")
  assert train.digest != found.digest
  with pytest.raises(DataError, match="no .* for audio/held_out"):
    open_media(tmp_path, need="audio")


def test_folders_of_samples_bring_prompts_and_have_their_records_checked(tmp_path):
  write_samples(tmp_path)
  found = open_media(tmp_path, need="video")
  assert found.names == ("key0", "key1", "key2") and found.items[1].text() == "prompt 1"
  assert read_frames(found.items[1], ClipRule()).frames.shape == (8, 16, 16, 3)
  path = tmp_path / "00001.mp4"
  path.write_bytes(path.read_bytes() + b"more")
  with pytest.raises(BadSample, match="not the file that was recorded"):
    read_frames(found.items[1], ClipRule())
  path.rename(tmp_path / "elsewhere")
  path.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(BadSample, match="missing"):
    read_frames(found.items[1], ClipRule())


def spoil(root, kind):
  if kind == "unknown file":
    (root / "class0" / "clip7.mp4.part").write_bytes(b"x")
  elif kind == "two kinds":
    write_sequences(root / "pictures", VIDEOS[:1])
  elif kind == "same name":
    shutil.copy(root / "class0" / "clip0.mp4", root / "class0" / "clip0.webm")
  elif kind == "linked folder":
    (root / "more").symlink_to(root / "class0")


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("unknown file", r"clip7\.mp4\.part: neither media nor"),
    ("two kinds", "holds both clips"),
    ("same name", "several files are called 'class0/clip0'"),
    ("linked folder", "more: a link to a folder"),
  ],
)
def test_what_is_not_plain_is_refused_by_name(folder, tmp_path, kind, message):
  root = shutil.copytree(folder, tmp_path / "copy")
  spoil(root, kind)
  with pytest.raises(DataError, match=message):
    open_media(root, need="video")


def test_sequences_with_gaps_doubles_or_no_numbers_are_refused(tmp_path):
  root = write_sequences(tmp_path / "gap", VIDEOS[:1])
  (root / "0000" / "7.png").unlink()
  with pytest.raises(DataError, match=r"0000: frames are missing after 6\.png"):
    open_media(root, need="video")
  root = write_sequences(tmp_path / "double", VIDEOS[:1])
  shutil.copy(root / "0000" / "7.png", root / "0000" / "07.png")
  with pytest.raises(DataError, match="has the same number"):
    open_media(root, need="video")
  root = write_sequences(tmp_path / "name", VIDEOS[:1])
  os.rename(root / "0000" / "7.png", root / "0000" / "seven.png")
  with pytest.raises(DataError, match="does not end in a number"):
    open_media(root, need="video")


def test_clips_that_are_short_cut_or_gone_are_bad_samples(folder, tmp_path):
  root = shutil.copytree(folder, tmp_path / "copy")
  items = open_media(root, need="video").items
  with pytest.raises(BadSample, match="has 20 frames, 24 are asked for"):
    read_frames(items[0], ClipRule(frames=24))
  path = root / "class0" / "clip0.mp4"
  path.write_bytes(path.read_bytes()[:-50])
  with pytest.raises(BadSample, match="not the file that was recorded"):
    read_frames(items[0], ClipRule())
  with pytest.raises(BadSample, match="not decodable|declared"):
    read_frames(open_media(root, need="video").items[0], ClipRule(frames=20))
  path.unlink()
  with pytest.raises(BadSample, match="missing"):
    read_frames(items[0], ClipRule())


def test_folders_without_what_is_needed_say_what_they_have(folder, tmp_path):
  with pytest.raises(ConfigError, match="no such folder"):
    open_media(tmp_path / "none", need="video")
  (tmp_path / "notes.txt").write_text("nothing else")
  with pytest.raises(DataError, match=r"holds no video \(nothing files\)"):
    open_media(tmp_path, need="video")
  with pytest.raises(DataError, match=r"holds no video \(2 audio files\)"):
    open_media(write_sounds(tmp_path, 2), need="video")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"start": "middle"}, "known are start, centre, random"),
    ({"frames": 0}, "--frames 0"),
    ({"fps": 0.0}, "--fps 0"),
    ({"sequence_fps": float("nan")}, "--sequence-fps nan"),
  ],
)
def test_rules_that_make_no_sense_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    ClipRule(**fields)
