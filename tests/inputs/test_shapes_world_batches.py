"""ShapesWorld as it is built, in each of its storages, comes out as the same batches."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vidgen.inputs.build import build_dataset, load_recipe
from vidgen.inputs.check import check_dataset
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.pipeline import make_dataset
from vidgen.inputs.text import ByteTokenizer

ROOT = Path(__file__).resolve().parents[2]
BUCKETS = (
  Bucket(name="video", frames=8, height=16, width=16, fps=4.0),
  Bucket(name="image", subset="image", frames=1, height=16, width=16, fps=1.0),
)
CONFIG = InputConfig(buckets=BUCKETS, text_length=160, caption_dropout=0.0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """{storage: folder}, ten clips and ten images each."""
  recipe = load_recipe(str(ROOT / "data" / "shapes_world.py"))
  recipe = dataclasses.replace(recipe, count=10, subsets={"video": 1.0, "image": 1.0}, shard_size=6)
  folders = {}
  for storage in ("tar", "array_record"):
    folders[storage] = tmp_path_factory.mktemp(storage)
    build_dataset(recipe, folders[storage], seed=0, storage=storage, workers=1)
  return folders


def batches(directory, config=CONFIG, count=6):
  iterator = iter(make_dataset(config, str(directory), batch_size=5, seed=0))
  return [next(iterator) for _ in range(count)]


def test_every_sample_is_sound(built):
  for folder in built.values():
    report = check_dataset(folder, processes=1)
    assert report["bad"] == []
    assert report["subsets"]["video/train"]["frames"] == 160


def test_tar_and_array_record_give_the_same_batches(built):
  for left, right in zip(batches(built["tar"]), batches(built["array_record"]), strict=True):
    for name in left:
      np.testing.assert_array_equal(left[name], right[name])


def test_captions_and_colours_are_those_of_the_world(built):
  tokenizer = ByteTokenizer()
  for batch in batches(built["tar"]):
    for ids, video in zip(batch["text"].tolist(), batch["video"], strict=True):
      caption = tokenizer.decode(ids)
      assert any(shape in caption for shape in ("circle", "square", "triangle", "cross")), caption
      assert video.max() - video.min() > 0.5  # something stands out from the background


def test_the_tfds_builder_gives_batches(tmp_path):
  path = ROOT / "data" / "shapes_world_tfds.py"
  spec = importlib.util.spec_from_file_location("shapes_world_tfds_under_test", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  from tensorflow_datasets.core import registered

  with registered.skip_registration():
    spec.loader.exec_module(module)
  config = module.ShapesWorldConfig(name="few", train=6, held_out=2)
  builder = module.ShapesWorldTfds(
    data_dir=str(tmp_path), file_format="array_record", config=config
  )
  builder.download_and_prepare()
  video = dataclasses.replace(CONFIG, buckets=BUCKETS[:1])
  for batch in batches(builder.data_path, video, 2):
    assert batch["video"].shape == (5, 8, 16, 16, 3) and batch["text_mask"].sum() > 5
