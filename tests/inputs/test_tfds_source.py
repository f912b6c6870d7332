"""A prepared TFDS data set is read; code that its files name is not run."""

import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from google.protobuf import json_format
from shards import tfds_set

from vidgen.errors import DataError
from vidgen.inputs.samples import NoSuchSplit
from vidgen.inputs.sources import open_source
from vidgen.inputs.tfds_source import MAX_FEATURES, TfdsSource, refuse_foreign_classes

OWN = "tensorflow_datasets.core.features."
DICT = f"{OWN}features_dict.FeaturesDict"
EVIL = "vidgen_test_payload.Evil"
TEXT = {"pythonClassName": f"{OWN}text_feature.Text", "text": {}}


def of_dict(feature):
  return {"pythonClassName": DICT, "featuresDict": {"features": {"txt": TEXT, "mp4": feature}}}


INSIDE = {"pythonClassName": EVIL, "text": {}}
SEQUENCE = {"pythonClassName": f"{OWN}sequence_feature.Sequence", "sequence": {"feature": INSIDE}}
ATTACKS = {
  "at the top": INSIDE,
  "in a dict": of_dict(INSIDE),
  "in a sequence in a dict": of_dict(SEQUENCE),
  "as protobuf spells it": of_dict({"python_class_name": EVIL, "text": {}}),
  "as old files have it": {"type": EVIL, "content": {}},
  "in an old dict": {"type": DICT, "content": {"mp4": {"type": EVIL, "content": {}}}},
  "in an old text of a message": {
    "type": DICT,
    "proto_cls": "tensorflow_datasets.FeaturesDict",
    "content": json.dumps({"features": {"mp4": INSIDE}}),
  },
  "in a JSON feature": {
    "pythonClassName": DICT,
    "jsonFeature": {"json": json.dumps({"mp4": {"type": EVIL, "content": {}}})},
  },
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  return tfds_set(tmp_path_factory.mktemp("tfds"), count=3)


@pytest.fixture
def hostile(tmp_path, prepared, monkeypatch):
  """A copy of the data set with a module that leaves a file behind, where Python looks for it."""
  for path in prepared.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  mark = tmp_path / "executed"
  (tmp_path / "vidgen_test_payload.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  sys.modules.pop("vidgen_test_payload", None)


def executed(folder):
  """Whether the payload was imported since this was last asked."""
  found = (folder / "executed").exists()
  (folder / "executed").unlink(missing_ok=True)
  sys.modules.pop("vidgen_test_payload", None)
  return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_class_that_is_not_of_tfds_is_refused_before_it_is_imported(hostile, attack):
  (hostile / "features.json").write_text(json.dumps(ATTACKS[attack]))
  with pytest.raises(ValueError, match="Unrecognized FeatureConnector"):
    tfds.builder_from_directory(hostile)
  assert executed(hostile)  # TFDS by itself does run it
  with pytest.raises(DataError, match="features.json: names the class 'vidgen_test_payload.Evil'"):
    open_source(hostile, subset="video")
  assert not executed(hostile)


def test_a_worker_process_looks_again(hostile):
  source = open_source(hostile, subset="video")
  (hostile / "features.json").write_text(json.dumps(of_dict(INSIDE)))
  copy = TfdsSource.__new__(TfdsSource)
  copy.__dict__.update(source.__getstate__())
  with pytest.raises(DataError, match="names the class"):
    copy[0]
  assert not executed(hostile)


def test_the_module_that_dataset_info_names_is_not_imported(hostile):
  path = hostile / "dataset_info.json"
  info = json.loads(path.read_text())
  path.write_text(json.dumps({**info, "moduleName": "vidgen_test_payload"}))
  assert len(list(open_source(hostile, subset="video"))) == 3
  path.write_text(json.dumps({**info, "fileFormat": "vidgen_test_payload"}))
  with pytest.raises(DataError):
    open_source(hostile, subset="video")
  assert not executed(hostile)


@pytest.mark.parametrize(
  "name", ["os.system", "Text", "tensorflow_datasets", "tensorflow_datasets_.a"]
)
def test_names_that_only_look_like_those_of_tfds_are_refused(tmp_path, name):
  path = tmp_path / "features.json"
  path.write_text(json.dumps({"pythonClassName": name}))
  with pytest.raises(DataError, match="names the class"):
    refuse_foreign_classes(path)


def test_what_tfds_writes_now_and_wrote_before_is_let_through(tmp_path):
  features = tfds.features.FeaturesDict(
    {
      "type": tfds.features.Text(),
      "label": tfds.features.ClassLabel(num_classes=3),
      "mp4": tfds.features.Tensor(shape=(), dtype=np.object_),
      "box": tfds.features.BBoxFeature(),
      "words": tfds.features.Sequence({"word": tfds.features.Translation(["de", "en"])}),
      "jpg": tfds.features.Image(shape=(4, 4, 3)),
    }
  )
  for tree in (features.to_json(), json_format.MessageToDict(features.to_proto())):
    (tmp_path / "features.json").write_text(json.dumps(tree))
    refuse_foreign_classes(tmp_path / "features.json")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b"{", "not readable as JSON"),
    (b"\xff\xfe", "not readable as JSON"),
    (b"[" * 100_000, "not readable as JSON"),
    (b'"' + b"x" * MAX_FEATURES + b'"', "more than"),
  ],
)
def test_features_that_are_no_json_are_refused(tmp_path, text, message):
  (tmp_path / "features.json").write_bytes(text)
  with pytest.raises(DataError, match=message):
    refuse_foreign_classes(tmp_path / "features.json")


def test_shards_outside_of_the_folder_are_not_opened(hostile, prepared):
  path = hostile / "dataset_info.json"
  info = json.loads(path.read_text())
  away = f"../{prepared.name}/{{DATASET}}-{{SPLIT}}.{{FILEFORMAT}}-{{SHARD_X_OF_Y}}"
  info["splits"][0]["filepathTemplate"] = away
  path.write_text(json.dumps(info))
  with pytest.raises(DataError, match="outside of the folder"):
    open_source(hostile, subset="video")


def test_a_split_that_is_missing_and_a_set_that_is_damaged_are_two_things(hostile):
  with pytest.raises(NoSuchSplit, match="no split held_out"):
    open_source(hostile, subset="video", split="held_out")
  (hostile / "dataset_info.json").write_text("{")
  with pytest.raises(DataError) as caught:
    open_source(hostile, subset="video")
  assert not isinstance(caught.value, NoSuchSplit)
