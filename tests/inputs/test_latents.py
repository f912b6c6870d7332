"""Latents beside a data set: those of the clips that the pipeline presents, and of no others."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest
from batches import IMAGE, VIDEO, take
from shards import clip_members, frame, image_set, jpeg, mp4, video_set, write_parquet, write_tar

from vidgen.errors import CheckpointError, ConfigError, DataError
from vidgen.inputs import encode
from vidgen.inputs.array_shards import ArrayShard
from vidgen.inputs.config import AutoencoderSource, InputConfig
from vidgen.inputs.pipeline import make_dataset
from vidgen.train.data import STILL

AUTOENCODER = {"params": "0" * 64, "dtype": "float32", "frames": "clip"}
SOURCE = AutoencoderSource(dtype="float32")
CONFIG = InputConfig(
  buckets=(VIDEO, IMAGE), text_length=16, bad_fraction=1.0, bad_count=10**6,
  temporal_crop="center", autoencoder=SOURCE,
)  # fmt: skip
CACHED = dataclasses.replace(CONFIG, latents="latents")


def encoded(video):
  """Stands for an autoencoder: means over blocks of 4 x 4 pixels of every other frame."""
  b, t, h, w, c = video.shape
  blocks = video.reshape(b, t, h // 4, 4, w // 4, 4, c).mean((3, 5))
  return blocks[:, ::2].astype(np.float32)


def shape_of(bucket):
  return (-(-bucket.frames // 2), bucket.height // 4, bucket.width // 4, 3)


def caches_of(root, config=CACHED, *, autoencoder=None, out="latents"):
  configs = {"train": config, "held_out": dataclasses.replace(config, **STILL)}
  return encode.describe_caches(
    configs, root, out=root / out, autoencoder=autoencoder or AUTOENCODER, shape_of=shape_of
  )


def write(root, config=CACHED, *, part=(0, 1), encoder=encoded, **options):
  work = encode.work_of(caches_of(root, config, **options), part=part)
  return encode.encode_samples(work, encoder, batch_size=4)


def batches(root, config, *, count=6, split="train", seed=0):
  """Batches with their latents, wherever these come from, and what was quarantined."""
  options: dict[str, Any] = {"autoencoder": AUTOENCODER} if config.latents else {}
  dataset = make_dataset(config, str(root), batch_size=4, seed=seed, split=split, **options)
  found = []
  for batch in take(dataset, count):
    video = batch.pop("video", None)
    found.append(batch if video is None else {**batch, "latents": encoded(video)})
  bad = dataset.quarantine
  return found, (bad.count(), dict(bad._bad))


def files(root):
  return sorted((root / "latents").rglob("*.arrays"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Clips larger and longer than the bucket, images, and clips that are held out."""
  root = tmp_path_factory.mktemp("data")
  video_set(root, size=(20, 28), frames=24)
  video_set(root, size=(20, 28), frames=24, split="held_out", shards=1, per_shard=4)
  return image_set(root, size=(20, 28))


@pytest.fixture(scope="module")
def cached(data):
  assert write(data) == {}
  return data


def same(left, right):
  for one, other in zip(left, right, strict=True):
    assert set(one) == set(other)
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("more", [{}, {"workers": 2}, {"cache_bytes": 0, "seed": 3}])
def test_batches_are_those_of_the_clips_encoded_on_the_fly(cached, more):
  more, seed = dict(more), more.get("seed", 0)
  more.pop("seed", None)
  ours, _ = batches(cached, dataclasses.replace(CACHED, **more), seed=seed)
  theirs, _ = batches(cached, CONFIG, seed=seed)
  same(ours, theirs)
  assert {batch["latents"].shape[1:] for batch in ours} == {shape_of(VIDEO), shape_of(IMAGE)}
  assert np.ptp(ours[0]["latents"]) > 0.01 and ours[0]["latents"].dtype == np.float32


def test_held_out_clips_are_cut_in_the_middle_wherever_those_of_training_are(data):
  early = dataclasses.replace(CACHED, temporal_crop="start", buckets=(VIDEO,), latents="early")
  write(data, early, out="early")
  for split, config in (("train", early), ("held_out", dataclasses.replace(early, **STILL))):
    ours, _ = batches(data, config, split=split)
    theirs, _ = batches(data, dataclasses.replace(config, latents=""), split=split)
    same(ours, theirs)


def test_the_position_is_of_the_run_and_not_of_how_latents_are_fed(cached):
  states = [
    iter(make_dataset(one, str(cached), batch_size=4, seed=0)).get_state()
    for one in (CONFIG, CACHED)
  ]
  assert states[0] == states[1]


def damaged(root):
  """Every other clip, and every other image, is bad, or too short for the bucket of clips."""
  kinds = [
    lambda m: {**m, "mp4": m["mp4"][:900]},
    lambda m: {**m, "txt": b""},
    lambda m: {**m, "mp4": b"<html>"},
    lambda m: {"txt": m["txt"]},
    lambda m: {**m, "mp4": mp4([frame(9)] * 3)},
  ]
  members, keys = [], []
  for i in range(2 * len(kinds) + 1):
    sample = {n.split(".")[1]: d for n, d in clip_members(f"{i:05d}", i, size=(16, 16))}
    sample = kinds[i // 2](sample) if i % 2 else sample
    members += [(f"{i:05d}.{suffix}", content) for suffix, content in sample.items()]
    keys.append(f"{i:05d}")
  write_tar(root / "video/train/00000.tar", members)
  write_parquet(root / "video/train/00000.parquet", [*keys, "lost"])
  pictures = [(f"{i}.jpg", jpeg(frame(30 * i))[: -200 if i % 2 else None]) for i in range(8)]
  texts = [(f"{i}.txt", b"a picture") for i in range(8)]
  write_tar(root / "image/train/00000.tar", sorted(pictures + texts))
  return root


@pytest.mark.parametrize("memory", [0, 2**24])
def test_bad_and_short_samples_are_replaced_and_recorded_as_on_the_fly(tmp_path, memory):
  root = damaged(tmp_path)
  short = dataclasses.replace(VIDEO, name="short", frames=2)  # 3 frames are enough for it
  config = dataclasses.replace(CACHED, buckets=(VIDEO, short, IMAGE), cache_bytes=memory)
  bad = write(root, config)
  assert ("image/train/00000.tar", "1") in bad and ("video/train/00000.tar", "00009") in bad
  ours, mine = batches(root, config, count=12)
  theirs, others = batches(root, dataclasses.replace(config, latents=""), count=12)
  same(ours, theirs)
  assert mine == others and mine[0] >= 9
  assert ("video/train/00000.tar", "00009") not in mine[1]  # too short for one of two


def test_a_killed_writer_goes_on_with_the_shard_it_was_at(data, tmp_path):
  straight, stopped = tmp_path / "straight", tmp_path / "stopped"
  for root in (straight, stopped):
    shutil.copytree(data, root, ignore=shutil.ignore_patterns("latents", "early"))
  write(straight)
  calls = []

  def dying(video):
    calls.append(len(video))
    if len(calls) > 3:  # in the second shard
      raise KeyboardInterrupt
    return encoded(video)

  with pytest.raises(KeyboardInterrupt):
    write(stopped, encoder=dying)
  (first,) = files(stopped)
  before = first.stat().st_mtime_ns
  (first.parent / ".00001.tar.arrays.7-0.partial").write_bytes(b"of one that was killed at once")
  with pytest.raises(DataError, match=r"missing; run `vidgen data latents --cache` again"):
    batches(stopped, CACHED)
  write(stopped)
  assert first.stat().st_mtime_ns == before
  assert [p.read_bytes() for p in files(stopped)] == [p.read_bytes() for p in files(straight)]
  assert not list((stopped / "latents").rglob("*.partial"))
  assert encode.work_of(caches_of(stopped)) == []


def test_processes_share_the_shards_and_the_size_is_said_before(data, tmp_path):
  root = tmp_path / "data"
  shutil.copytree(data, root, ignore=shutil.ignore_patterns("latents", "early"))
  caches = caches_of(root)
  said = sum(work.bytes for work in encode.work_of(caches))
  parts = [encode.work_of(caches, part=(i, 2)) for i in range(2)]
  assert [len(part) for part in parts] == [2, 2]  # two shards of clips, one held out, one of images
  folder = root / "latents/video/train/video/train"
  folder.mkdir(parents=True)
  other = folder / ".00001.tar.arrays.7-0.partial"
  other.touch()
  write(root, part=(0, 2))
  assert other.exists()  # of a process that is still at work
  write(root, part=(1, 2))
  assert said == sum(path.stat().st_size for path in files(root))


def test_a_bucket_that_chooses_has_the_latents_of_what_it_chose(tmp_path):
  """Clips of 1.5 s, spread over 4 frames of lower rate, are its own; those of 3 s are not."""
  members = []
  for i in range(8):
    members += clip_members(f"{i:05d}", i, frames=12 if i % 2 else 24)
  write_tar(tmp_path / "video/train/00000.tar", members)
  bucket = dataclasses.replace(VIDEO, fps=2.0, max_seconds=2.0, rate="spread")
  config = dataclasses.replace(CACHED, buckets=(bucket,), prefix=("fps",))
  write(tmp_path, config)
  assert np.flatnonzero(ArrayShard(files(tmp_path)[0]).there).tolist() == [1, 3, 5, 7]
  ours, theirs = (
    batches(tmp_path, dataclasses.replace(config, latents=latents))[0]
    for latents in ("latents", "")
  )
  same(ours, theirs)
  np.testing.assert_allclose(ours[0]["fps"], 4 / 1.5, rtol=1e-6)


def test_shards_that_were_built_anew_are_refused_until_encoded_again(tmp_path):
  video_set(tmp_path)
  config = dataclasses.replace(CACHED, buckets=(VIDEO,))
  write(tmp_path, config)
  untouched = [path.read_bytes() for path in files(tmp_path)]
  video_set(tmp_path, shards=1, frames=20)
  with pytest.raises(DataError, match=r"00000\.tar\.arrays: not of this shard as it is now"):
    batches(tmp_path, config)
  write(tmp_path, config)
  now = [path.read_bytes() for path in files(tmp_path)]
  assert now[0] != untouched[0] and now[1] == untouched[1]
  same(batches(tmp_path, config)[0], batches(tmp_path, dataclasses.replace(config, latents=""))[0])


def test_damage_is_found_and_named(cached, tmp_path):
  root = tmp_path / "data"
  shutil.copytree(cached, root)
  path = root / "latents/video/train/video/train/00001.tar.arrays"
  content = bytearray(path.read_bytes())
  content[30] ^= 1
  path.write_bytes(content)
  with pytest.raises(DataError, match=r"00001\.tar\.arrays: sample \d: .* changed; remove"):
    batches(root, CACHED, count=12)
  path.write_bytes(content[:-60])
  with pytest.raises(DataError, match=r"00001\.tar\.arrays: .*; run `vidgen data latents"):
    batches(root, CACHED)
  write(root)  # which finds out, too
  same(batches(root, CACHED)[0], batches(root, CONFIG)[0])
  shutil.rmtree(root / "latents")
  with pytest.raises(DataError, match="holds no latents"):
    batches(root, CACHED)


def test_a_bucket_that_gets_more_samples_has_only_those_encoded(data, tmp_path):
  root, encodings = tmp_path / "data", []
  shutil.copytree(data, root, ignore=shutil.ignore_patterns("latents", "early"))
  clips = [caches_of(root)[0]]
  few = [dataclasses.replace(clips[0], chosen=np.array([1, 4, 9]))]

  def counting(video):
    encodings.append(video)
    return encoded(video)

  encode.encode_samples(encode.work_of(few), counting, batch_size=1)
  assert len(encodings) == 3
  shard = ArrayShard(files(root)[0])
  assert np.flatnonzero(shard.there).tolist() == [1, 4]
  with pytest.raises(DataError, match=r"00000\.tar\.arrays: has nothing for 4 samples; run"):
    batches(root, dataclasses.replace(CACHED, buckets=(VIDEO,)))
  encode.encode_samples(encode.work_of(clips), counting, batch_size=1)
  assert len(encodings) == 12
  config = dataclasses.replace(CACHED, buckets=(VIDEO,))
  same(batches(root, config)[0], batches(root, dataclasses.replace(config, latents=""))[0])


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"buckets": (dataclasses.replace(VIDEO, fps=2.0),)}, r"clip\.fps: 4\.0 -> 2\.0"),
    ({"buckets": (dataclasses.replace(VIDEO, width=12),)}, r"clip\.width: 16 -> 12"),
    ({"temporal_crop": "start"}, "clip.temporal_crop: 'center' -> 'start'"),
    ({"cache_bytes": 1}, "clip.whole_clips: False -> True"),
  ],
)
def test_latents_of_other_clips_are_refused(cached, change, match):
  with pytest.raises(DataError, match=rf"latents/video/train: these latents .*{match}"):
    batches(cached, dataclasses.replace(CACHED, **change))
  with pytest.raises(DataError, match=match):
    write(cached, dataclasses.replace(CACHED, **change))


def test_latents_of_another_autoencoder_are_neither_read_nor_mixed(cached):
  other = {**AUTOENCODER, "params": "1" * 64}
  with pytest.raises(DataError, match=r"autoencoder\.params: .* -> '1111"):
    make_dataset(CACHED, str(cached), batch_size=4, seed=0, autoencoder=other)
  with pytest.raises(DataError, match=r"autoencoder\.params"):
    write(cached, autoencoder=other)
  source = dataclasses.replace(SOURCE, dtype="bfloat16")  # without a run, what the config says
  with pytest.raises(DataError, match=r"dtype: 'float32' -> 'bfloat16'"):
    make_dataset(dataclasses.replace(CACHED, autoencoder=source), str(cached), batch_size=4, seed=0)


@pytest.mark.parametrize(
  ("key", "change"),
  [
    ("flip", {"flip": 0.1}),
    ("temporal_crop", {"temporal_crop": "random"}),
    ("spatial_crop", {"spatial_crop": "random"}),
    ("latents: needs autoencoder", {"autoencoder": None}),
  ],
)
def test_what_is_drawn_anew_for_every_batch_cannot_be_cached(key, change):
  with pytest.raises(ValueError, match=rf"^{key}"):
    dataclasses.replace(CACHED, **change)
  dataclasses.replace(CONFIG, **change)


def test_a_bucket_whose_name_is_a_path_has_no_cache(data):
  bucket = dataclasses.replace(VIDEO, name="../video")
  with pytest.raises(ConfigError, match="need a name without slashes"):
    caches_of(data, dataclasses.replace(CACHED, buckets=(bucket,)))


def test_values_that_are_not_finite_are_refused(tmp_path):
  video_set(tmp_path, shards=1)
  config = dataclasses.replace(CACHED, buckets=(VIDEO,))
  with pytest.raises(CheckpointError, match="not finite"):
    write(tmp_path, config, encoder=lambda video: encoded(video) * np.nan)
  assert not files(tmp_path)
