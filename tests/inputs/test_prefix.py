"""What is put before a caption in training: the bucket's rate and the sample's camera motion."""

import dataclasses
import json

import pytest
from batches import MIXED, ONE, captions, take
from shards import clip_members, image_set, video_set, write_tar

from vidgen.config import build
from vidgen.errors import ConfigError
from vidgen.inputs.config import EncoderSource, InputConfig
from vidgen.inputs.pipeline import make_dataset
from vidgen.inputs.prefix import camera_of
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.streams import TokenText
from vidgen.inputs.text import ByteTokenizer


def read(config, root, count=4):
  config = dataclasses.replace(config, text_length=40, shuffle=False)
  return captions(take(make_dataset(config, str(root), batch_size=4, seed=0), count))


def test_a_clip_has_its_rate_before_it_and_an_image_has_none(tmp_path):
  root = image_set(video_set(tmp_path))
  found = read(dataclasses.replace(MIXED, prefix=("fps",)), root, count=6)
  clips, images = ([text for text in found if kind in text] for kind in ("clip", "image"))
  assert clips and all(text.startswith("FPS-4 clip ") for text in clips)
  assert images and all(text.startswith("image ") for text in images)


def test_a_camera_motion_counts_when_it_is_sure(tmp_path):
  """The threshold is the config's; a sample without one is as it was."""
  facts = [{"camera": "pan left"}, {"camera": "arc", "camera_confidence": 0.4}, {},
           {"camera": "tilt up", "camera_confidence": 0.9}]  # fmt: skip
  members = []
  for i, fact in enumerate(facts):
    video, text, _ = clip_members(f"{i:05d}", i)
    members += [video, text, (f"{i:05d}.json", json.dumps(fact).encode())]
  write_tar(tmp_path / "video" / "train" / "00000.tar", members)
  config = dataclasses.replace(ONE, prefix=("fps", "camera"))
  assert read(config, tmp_path, count=1) == [
    "FPS-4 pan left. clip 0", "FPS-4 clip 1", "FPS-4 clip 2", "FPS-4 tilt up. clip 3",
  ]  # fmt: skip
  easy = dataclasses.replace(config, prefix=("camera",), camera_confidence=0.3)
  assert read(easy, tmp_path, count=1)[1] == "arc. clip 1"


def test_a_dropped_caption_loses_its_prefix(tmp_path):
  config = dataclasses.replace(ONE, prefix=("fps",), caption_dropout=1.0)
  assert set(read(config, video_set(tmp_path), count=1)) == {""}


def test_an_encoder_of_quotes_reads_no_prefix():
  source = EncoderSource(length=32, folder="x", reads="quoted")
  tokens = TokenText(ByteTokenizer(), source)
  prefixed, plain = (tokens(0, text) for text in ('FPS-16 a sign "GO"', 'a sign "GO"'))
  assert prefixed.tolist() == plain.tolist()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"camera": 3}', b'{"camera_confidence": "x"}'])
def test_a_json_that_names_no_camera_motion_is_a_bad_sample(content):
  with pytest.raises(BadSample, match="camera motion"):
    camera_of({"json": content}, confidence=0.5)


def test_cached_embeddings_are_of_captions_behind_one_rate():
  """A bucket whose clips have a rate each has none of them, unless its captions say no rate."""
  fields = {"encoders": {"ul2": {"length": 8}}, "embeddings": "e"}
  spread = {**fields, "buckets": [{"name": "long", "rate": "spread"}]}
  with pytest.raises(ConfigError, match="prefix: cached embeddings .* bucket 'long'"):
    build(InputConfig, {**spread, "prefix": ["fps"]})
  assert build(InputConfig, {**spread, "prefix": ["camera"]}).prefix == ("camera",)
  assert build(InputConfig, {**fields, "prefix": ["fps"]}).prefix == ("fps",)


def test_positions_from_before_there_were_prefixes_are_still_positions(tmp_path):
  """What a run's data hang on has the names that it had, until the new ones are used."""
  before = {
    "buckets", "text_length", "tokenizer", "caption_dropout", "temporal_crop", "spatial_crop",
    "flip", "shuffle", "limits",
  }  # fmt: skip
  root = str(video_set(tmp_path))

  def names(config):
    return set(iter(make_dataset(config, root, batch_size=4, seed=0)).get_state()["inputs"])

  assert names(ONE) == before
  assert names(dataclasses.replace(ONE, prefix=("fps",))) == before | {"prefix"}
