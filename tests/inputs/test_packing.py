"""Packed rows: a clip, images behind it, a caption for each, and numbers that tell them apart."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from batches import IMAGE, ONE, VIDEO, same, take
from shards import clip_members, frame, image_set, jpeg, video_set, write_tar

from vidgen.config import build
from vidgen.errors import ConfigError
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.packing import image_positions
from vidgen.inputs.pipeline import describe_data, make_dataset
from vidgen.inputs.text import ByteTokenizer

CLIPS, IMAGES = 12, 8  # in `data`
JOINT = dataclasses.replace(VIDEO, images=3)
PACK = dataclasses.replace(IMAGE, name="pack", images=6, fps=4.0)  # of as many frames as JOINT
CONFIG = dataclasses.replace(ONE, buckets=(JOINT,), temporal_crop="start")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  image_set(video_set(root), count=IMAGES)
  return str(image_set(video_set(root, split="held_out"), count=IMAGES, split="held_out"))


def words(batch):
  """The captions of each row, by slot."""
  tokenizer = ByteTokenizer()
  return [[tokenizer.decode(ids) for ids in row] for row in batch["text"].tolist()]


def image_names(batches):
  """The captions of images, in the order of their positions."""
  return [name for batch in batches for row in words(batch) for name in row if "image" in name]


def bytes_of(video):
  return (video + 1) * 127.5


def test_a_row_is_a_clip_with_images_behind_it_and_their_captions(data):
  """Clip n of the fixture begins with a gray of 4 n + 10, image n is one of 20 n + 10."""
  batch = take(make_dataset(CONFIG, data, batch_size=5, seed=0), 1)[0]
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
    "video": ((5, 7, 16, 16, 3), np.float32),
    "segments": ((5, 7), np.int32),
    "text": ((5, 4, 16), np.int32),
    "text_mask": ((5, 4, 16), np.bool_),
    "fps": ((5,), np.float32),
  }
  assert (batch["segments"] == [0, 0, 0, 0, 1, 2, 3]).all() and (batch["fps"] == 4).all()
  levels = bytes_of(batch["video"]).mean((2, 3, 4))
  for row, (clip, *images) in enumerate(words(batch)):
    assert clip.startswith("clip ") and len(images) == 3
    np.testing.assert_allclose(levels[row, 0], 4 * int(clip.split()[1]) + 10, atol=4)
    shown = [20 * int(name.split()[1]) + 10 for name in images]
    np.testing.assert_allclose(levels[row, 4:], shown, atol=4)
  lengths = batch["text_mask"].sum(-1)
  assert (lengths == [[len(name) + 1 for name in row] for row in words(batch)]).all()


def test_slots_that_are_not_used_hold_no_token(data):
  wide = dataclasses.replace(CONFIG, buckets=(dataclasses.replace(JOINT, captions=7),))
  batch, narrow = (take(make_dataset(c, data, batch_size=4, seed=0), 1)[0] for c in (wide, CONFIG))
  assert batch["text"].shape == (4, 7, 16)
  assert not batch["text_mask"][:, 4:].any() and not batch["text"][:, 4:].any()
  for name in ("text", "text_mask"):
    np.testing.assert_array_equal(batch[name][:, :4], narrow[name])


def test_a_row_of_a_clip_alone_says_so(data):
  bucket = dataclasses.replace(VIDEO, captions=2)
  config = dataclasses.replace(CONFIG, buckets=(bucket,))
  packed, alone = (
    take(make_dataset(c, data, batch_size=4, seed=0), 1)[0]
    for c in (config, dataclasses.replace(CONFIG, buckets=(VIDEO,)))
  )
  assert packed["segments"].shape == (4, 4) and not packed["segments"].any()
  np.testing.assert_array_equal(packed["video"], alone["video"])
  np.testing.assert_array_equal(packed["text"][:, 0], alone["text"])
  assert not packed["text_mask"][:, 1].any()


def test_clips_do_not_depend_on_the_images_behind_them(data):
  joint, alone = (
    take(make_dataset(c, data, batch_size=4, seed=0), 6)
    for c in (CONFIG, dataclasses.replace(CONFIG, buckets=(VIDEO,)))
  )
  for packed, plain in zip(joint, alone, strict=True):
    np.testing.assert_array_equal(packed["video"][:, :4], plain["video"])
    np.testing.assert_array_equal(packed["text"][:, 0], plain["text"])


def test_packs_of_images_and_clips_with_images_have_one_shape(data):
  buckets = (dataclasses.replace(JOINT, captions=7), PACK)
  config = dataclasses.replace(CONFIG, buckets=buckets)
  batches = take(make_dataset(config, data, batch_size=2, seed=0), 9)
  shapes = [{name: (a.shape, a.dtype) for name, a in batch.items()} for batch in batches]
  assert all(each == shapes[0] for each in shapes)
  segments = [batch["segments"][0].tolist() for batch in batches]
  assert segments.count([0, 1, 2, 3, 4, 5, 6]) == 3  # by weight
  assert segments.count([0, 0, 0, 0, 1, 2, 3]) == 6
  (pack,) = (b for b, s in zip(batches[:3], segments[:3], strict=True) if s[1])
  assert all(name.startswith("image ") for row in words(pack) for name in row)
  assert pack["text_mask"].any(-1).all()


def test_every_image_comes_once_an_epoch_in_an_order_of_the_buckets_own(data):
  names = image_names(take(make_dataset(CONFIG, data, batch_size=4, seed=0), 6))
  epochs = [names[i : i + IMAGES] for i in range(0, 72, IMAGES)]
  assert all(sorted(epoch) == [f"image {i}" for i in range(IMAGES)] for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 9
  still = dataclasses.replace(CONFIG, shuffle=False)
  assert image_names(take(make_dataset(still, data, batch_size=4, seed=0), 2)) == [
    f"image {i % IMAGES}" for i in range(24)
  ]
  other = dataclasses.replace(CONFIG, buckets=(dataclasses.replace(JOINT, name="other"),))
  assert image_names(take(make_dataset(other, data, batch_size=4, seed=0), 6)) != names


def test_rows_take_one_part_of_the_positions_after_another():
  taken = image_positions(np.array([5, 0, 7]), images=3)
  assert taken.tolist() == [[15, 16, 17], [0, 1, 2], [21, 22, 23]]


@pytest.mark.parametrize("change", [{}, {"cache_bytes": 1 << 20}, {"workers": 1}])
def test_a_batch_is_a_function_of_its_number(data, change):
  """Whatever reads it, from wherever it goes on, whichever rows are made."""
  buckets = (
    dataclasses.replace(JOINT, captions=7, height=12),
    dataclasses.replace(PACK, height=12),
  )
  config = dataclasses.replace(
    ONE, buckets=buckets, caption_dropout=0.3, spatial_crop="random", flip=0.5
  )
  whole = take(make_dataset(config, data, batch_size=4, seed=0), 4)
  config = dataclasses.replace(config, **change)
  some = take(make_dataset(config, data, batch_size=4, seed=0, rows=[1, 3]), 4)
  same(some, [{name: array[[1, 3]] for name, array in batch.items()} for batch in whole])
  later = iter(make_dataset(config, data, batch_size=4, seed=0))
  later.set_state({**json.loads(json.dumps(later.get_state())), "position": 2})
  same([next(later) for _ in range(2)], whole[2:])
  later.close()


def test_captions_of_images_are_dropped_one_by_one(data):
  config = dataclasses.replace(CONFIG, caption_dropout=0.25, cache_bytes=1 << 20)
  batches = take(make_dataset(config, data, batch_size=100, seed=0), 10)
  null = np.concatenate([batch["text"][:, :, 0] == 1 for batch in batches])
  assert np.abs(null.mean(0) - 0.25).max() < 0.07  # 1,000 draws a slot: five standard errors
  both = (null[:, 1] & null[:, 2]).mean()
  assert abs(both - 1 / 16) < 0.04
  assert all((batch["text_mask"].any(-1)).all() for batch in batches)


def test_a_bad_image_is_replaced_and_changes_no_other(tmp_path):
  roots = [video_set(tmp_path / name) for name in ("good", "bad")]
  for root in roots:
    image_set(root, count=IMAGES)
  members = []
  for i in range(IMAGES):
    picture = b"<html>" if i == 3 else jpeg(frame((20 * i) % 230 + 10))
    members += [(f"{i:05d}.jpg", picture), (f"{i:05d}.txt", b"image %d" % i)]
  write_tar(roots[1] / "image" / "train" / "00000.tar", members)
  path = tmp_path / "quarantine.jsonl"
  good, bad = (
    take(make_dataset(CONFIG, str(root), batch_size=4, seed=0, quarantine_path=str(path)), 4)
    for root in roots
  )
  replaced = 0
  for ours, theirs in zip(bad, good, strict=True):
    for row, slot in itertools.product(range(4), range(4)):
      if words(theirs)[row][slot] == "image 3":
        replaced += 1
        assert words(ours)[row][slot] not in ("image 3", "")
        continue
      frames = slice(0, 4) if slot == 0 else slice(3 + slot, 4 + slot)
      np.testing.assert_array_equal(ours["video"][row, frames], theirs["video"][row, frames])
      np.testing.assert_array_equal(ours["text"][row, slot], theirs["text"][row, slot])
  assert replaced == 6  # 48 images, of eight
  (line,) = map(json.loads, path.read_text().splitlines())
  assert (line["shard"], line["key"]) == ("image/train/00000.tar", "00003")


def test_frames_of_other_clips_are_images_too(data):
  """As in Video Diffusion Models, whose images are of the same videos."""
  bucket = dataclasses.replace(JOINT, image_subset="video")
  config = dataclasses.replace(ONE, buckets=(bucket,))
  batches = take(make_dataset(config, data, batch_size=4, seed=0), 3)
  assert all(name.startswith("clip ") for b in batches for row in words(b) for name in row)
  levels = np.concatenate([bytes_of(b["video"][:, 4:]).mean((2, 3, 4)).ravel() for b in batches])
  clips = np.array([int(n.split()[1]) for b in batches for row in words(b) for n in row[1:]])
  moments = (levels - 10 - 4 * clips) / 2  # frame i of a clip is brighter by 2 i
  assert np.ptp(moments) > 8 and moments.min() > -2 and moments.max() < 17


def test_images_choose_by_their_shape(tmp_path):
  """With a tolerance, images that are too wide are behind no clip."""
  root = video_set(tmp_path)
  members = []
  for i, size in enumerate([(32, 32), (32, 64), (32, 32)]):
    members += [(f"{i}.jpg", jpeg(frame(50, size=size))), (f"{i}.txt", b"image %d" % i)]
  write_tar(root / "image" / "train" / "00000.tar", members)
  config = dataclasses.replace(CONFIG, aspect_tolerance=0.1)
  names = image_names(take(make_dataset(config, str(root), batch_size=4, seed=0), 3))
  assert set(names) == {"image 0", "image 2"}


def test_the_position_of_a_run_without_images_is_as_before(data):
  """Fields that came later are in it only where they are used."""
  plain, packed = (
    iter(make_dataset(c, data, batch_size=2, seed=0)).get_state()
    for c in (ONE, dataclasses.replace(ONE, buckets=(dataclasses.replace(JOINT, cover=(20, 20)),)))
  )
  assert set(plain["inputs"]["buckets"][0]) == {
    "name", "subset", "frames", "height", "width", "fps", "weight"
  }  # fmt: skip
  more = set(packed["inputs"]["buckets"][0]) - set(plain["inputs"]["buckets"][0])
  assert more == {"images", "cover"} and packed["data"] != plain["data"]


def test_the_images_are_of_the_data(data):
  assert set(describe_data(CONFIG, data)) == {"video", "image"}
  assert set(describe_data(ONE, data)) == {"video"}


def test_a_crop_is_cut_of_what_is_covered(tmp_path):
  """A ramp of 64 pixels, scaled to 32: of 16 of them half the range is seen, at any place."""
  ramp = np.repeat(np.linspace(20, 212, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
  write_tar(tmp_path / "image" / "train" / "0.tar", [("a.jpg", jpeg(ramp)), ("a.txt", b"image")])
  write_tar(tmp_path / "video" / "train" / "0.tar", clip_members("a", 0, size=(64, 64)))
  pack = dataclasses.replace(IMAGE, images=1, cover=(32, 32))
  config = dataclasses.replace(ONE, buckets=(pack,), spatial_crop="random")
  rows = bytes_of(take(make_dataset(config, str(tmp_path), batch_size=50, seed=0), 1)[0]["video"])
  assert rows.shape == (50, 2, 16, 16, 3)
  left, right = rows[:, :, :, 0].mean((2, 3)), rows[:, :, :, -1].mean((2, 3))
  np.testing.assert_allclose(right - left, 15 * 192 / 31.5, atol=4)
  assert left.min() < 35 and right.max() > 197 and len(set(left.round().ravel())) > 10
  assert (left[:, 0] != left[:, 1]).any()  # the images of a row are cut each for itself
  still = dataclasses.replace(config, spatial_crop="center")
  middle = bytes_of(take(make_dataset(still, str(tmp_path), batch_size=4, seed=0), 1)[0]["video"])
  np.testing.assert_allclose(middle.mean((1, 2, 3, 4)), 116, atol=2)


@pytest.mark.parametrize(
  ("bucket", "config", "message"),
  [
    ({"images": -1}, {}, "captions must be 0"),
    ({"images": 3, "captions": 3}, {}, "captions must be 0, or 4 or more for its images, got 3"),
    ({"cover": [60, 70]}, {}, "64 x 64 cannot be cut of cover"),
    ({"captions": 1}, {"degradation": {"factor": 2.0}}, "of pixels alone"),
    ({"images": 1}, {"autoencoder": {"workdir": "x"}}, "of pixels alone"),
    (
      {"images": 1},
      {"prefix": ["fps"], "embeddings": "e", "encoders": {"t5": {"length": 4}}},
      "prefix: cached embeddings",
    ),
  ],
)
def test_rows_that_make_no_sense_are_refused(bucket, config, message):
  with pytest.raises(ConfigError, match=message):
    build(InputConfig, {"buckets": [bucket], **config})


def test_a_cover_is_not_of_cached_latents():
  tree = {
    "buckets": [{"cover": [80, 80]}], "latents": "latents", "autoencoder": {},
    "temporal_crop": "center",
  }  # fmt: skip
  with pytest.raises(ConfigError, match="without cover"):
    build(InputConfig, tree)
  assert Bucket(cover=(80, 80)).covered == (80, 80) and Bucket().covered == (64, 64)
