"""The TFDS builder holds the very clips of the shards and is read without TensorFlow."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from vidgen.shapes_world.files import ShapesWorldFiles

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import runpy, sys
import tensorflow_datasets as tfds
recipe = runpy.run_path("data/shapes_world_tfds.py")
config = recipe["ShapesWorldConfig"](name="small", train=6, held_out=3, seed=4)
builder = recipe["ShapesWorldTfds"](data_dir=sys.argv[1], file_format="array_record", config=config)
builder.download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  subprocess.run([sys.executable, "-c", PREPARE, folder], cwd=ROOT, check=True, capture_output=True)
  return folder


def test_data_source_gives_the_clips_of_the_generator_at_random(prepared):
  import tensorflow_datasets as tfds

  runpy.run_path(str(ROOT / "data" / "shapes_world_tfds.py"))  # registers the builder by name
  data = tfds.data_source("shapes_world_tfds/small", data_dir=prepared, split="held_out")
  assert len(data) == 3
  found = {}
  for i in (2, 0, 1):
    example = data[i]
    index = int(example["key"])
    record = ShapesWorldFiles().record("video", seed=4, split="held_out", index=index, key="k")
    assert example["mp4"] == record.files["mp4"]
    assert example["txt"].decode() == record.caption
    assert json.loads(example["json"])["attributes"] == record.columns["attributes"]
    found[index] = i
  assert set(found) == {0, 1, 2}


def test_as_data_source_and_the_projects_own_reader_agree(prepared):
  import tensorflow_datasets as tfds

  from vidgen.inputs.sources import TfdsSource

  folder = next(prepared.glob("shapes_world_tfds/small/*"))
  data = tfds.builder_from_directory(folder).as_data_source(split="train")
  source = TfdsSource(folder, split="train")
  assert len(data) == len(source) == 6
  for i in range(6):
    assert source[i]["mp4"] == data[i]["mp4"]
    assert source[i]["__key__"] == data[i]["key"].decode()
