"""Exported weights describe themselves, read back bit for bit, and are refused when damaged."""

import json
import pickle
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy
from trained_run import changed, experiment, params, stage

from vidgen.config import digest, plain
from vidgen.errors import CheckpointError
from vidgen.interop.parameters import Origin, named
from vidgen.interop.safetensors import WEIGHTS, load_safetensors, save_safetensors
from vidgen.systems import make_stage

ORIGIN = Origin(step=5, weights="ema", config_digest="c", params_digest="p")


@pytest.fixture
def folder(tmp_path):
  save_safetensors(tmp_path, params(), config=plain(experiment()), origin=ORIGIN)
  return tmp_path


def rewrite(folder, *, arrays=None, facts=None, **described):
  """The file again, consistent in itself, with other contents and no config.json beside it."""
  path = folder / WEIGHTS
  (folder / "config.json").unlink(missing_ok=True)
  with safetensors.safe_open(path, framework="numpy") as file:
    old = {name: file.get_tensor(name) for name in file.keys()}
    text = file.metadata()
  tree = {key: json.loads(text[key]) for key in ("config", "origin", "arrays")} | described
  tree["arrays"] = facts or tree["arrays"]
  text |= {key: json.dumps(value) for key, value in tree.items()}
  text["metadata_sha256"] = digest(tree)
  path.write_bytes(safetensors.numpy.save({**old, **(arrays or {})}, metadata=text))


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_saved_loads_back_bit_for_bit(folder, alone):
  if alone:
    (folder / "config.json").unlink()
  config, loaded = load_safetensors(folder if not alone else folder / WEIGHTS)
  assert config == plain(experiment())
  assert jax.tree.structure(loaded) == jax.tree.structure(params())
  jax.tree.map(np.testing.assert_array_equal, loaded, params())
  again = make_stage(config["stage"]["name"], config["stage"]["fields"])
  assert again.config == stage().config


def test_other_tools_read_the_file(folder):
  arrays = safetensors.numpy.load_file(folder / WEIGHTS)
  assert set(arrays) == set(named(params()))
  described = json.loads((folder / "config.json").read_text())
  assert described["origin"]["step"] == 5 and described["config"]["name"] == "tiny"
  assert described["arrays"]["network/patch_in/bias"]["shape"] == [32]


@pytest.mark.parametrize("alone", [False, True])
def test_a_flipped_bit_anywhere_is_refused(folder, alone):
  path = folder / WEIGHTS
  whole = path.read_bytes()
  if alone:
    (folder / "config.json").unlink()
  header = struct.unpack("<Q", whole[:8])[0]
  places = [0, 7, *range(9, 8 + header, header // 60), 8 + header, len(whole) // 2, len(whole) - 1]
  for place in places:
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with pytest.raises(CheckpointError, match=WEIGHTS):
      load_safetensors(folder)
  path.write_bytes(whole)
  load_safetensors(folder)


@pytest.mark.parametrize("alone", [False, True])
def test_a_truncated_or_missing_file_is_refused(folder, alone):
  path = folder / WEIGHTS
  whole = path.read_bytes()
  if alone:
    (folder / "config.json").unlink()
  for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match=WEIGHTS):
      load_safetensors(folder)
  path.unlink()
  with pytest.raises(CheckpointError, match="missing"):
    load_safetensors(folder)


def test_a_damaged_array_is_named(folder):
  path = folder / WEIGHTS
  whole = path.read_bytes()
  (folder / "config.json").unlink()
  path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(CheckpointError, match="array text/.*: its sha256 differs"):
    load_safetensors(folder)


def test_weights_of_another_architecture_are_refused_with_every_difference(tmp_path, folder):
  with pytest.raises(CheckpointError, match=r"\+ network/blocks/mlp.* float32\[1,32,64\]"):
    save_safetensors(tmp_path / "new", params(), config=plain(changed(mlp_width=64)), origin=ORIGIN)
  assert not (tmp_path / "new").exists()
  rewrite(folder, config=plain(changed(layers=2)))
  with pytest.raises(
    CheckpointError, match=r"\+ network/blocks/modulation_table float32\[2,6,32\]"
  ):
    load_safetensors(folder)
  rewrite(folder, config={"stage": {"name": "nope"}})
  with pytest.raises(CheckpointError, match="does not build"):
    load_safetensors(folder)


def test_arrays_too_many_or_too_few_are_refused(folder):
  rewrite(folder, arrays={"extra": np.zeros(3, np.float32)})
  with pytest.raises(CheckpointError, match="array extra is in the header or the record"):
    load_safetensors(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_both_ways(tmp_path, folder, value):
  bad = jax.tree.map(np.array, params())
  bad["network"]["patch_in"]["bias"][3] = value
  with pytest.raises(CheckpointError, match="not finite: network/patch_in/bias"):
    save_safetensors(tmp_path / "new", bad, config=plain(experiment()), origin=ORIGIN)
  assert not (tmp_path / "new").exists()
  from vidgen.train.manifest import array_sha256

  array = bad["network"]["patch_in"]["bias"]
  facts = json.loads((folder / "config.json").read_text())["arrays"]
  facts["network/patch_in/bias"]["sha256"] = array_sha256(array)
  rewrite(folder, arrays={"network/patch_in/bias": array}, facts=facts)
  with pytest.raises(CheckpointError, match="not finite: network/patch_in/bias"):
    load_safetensors(folder)


class Exploding:
  def __reduce__(self):
    return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
  "content",
  [
    pickle.dumps(Exploding()),
    struct.pack("<Q", 2**62) + b"{}",
    struct.pack("<Q", 90_000_000) + b"{}",
    struct.pack("<Q", 40_000) + b"[" * 40_000,
    safetensors.numpy.save({"a": np.zeros(1)}),
    safetensors.numpy.save({"a": np.zeros(1)}, metadata={"format": "pt"}),
  ],
  ids=["pickle", "huge header", "large header", "deep header", "no metadata", "another format"],
)
def test_other_files_are_refused(tmp_path, content):
  (tmp_path / WEIGHTS).write_bytes(content)
  with pytest.raises(CheckpointError, match=WEIGHTS):
    load_safetensors(tmp_path)


def test_a_config_beside_it_that_says_otherwise_is_refused(folder):
  path = folder / "config.json"
  described = json.loads(path.read_text())
  described["origin"]["step"] = 6
  path.write_text(json.dumps(described))
  with pytest.raises(CheckpointError, match="says otherwise"):
    load_safetensors(folder)
  for text in ("{", "[]", "[" * 100_000):
    path.write_text(text)
    with pytest.raises(CheckpointError, match="config.json: damaged"):
      load_safetensors(folder)
