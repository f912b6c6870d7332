"""Folders that we write are what transformers loaded, and give what it computed from them."""

import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check
from fixtures.exported_networks import (
  IDS,
  MASK,
  NETWORKS,
  SHARD_BYTES,
  SHARDED,
  images,
  parameters,
  shapes,
)

from vidgen.errors import CheckpointError, ConfigError
from vidgen.interop import huggingface
from vidgen.interop.huggingface import save_huggingface
from vidgen.interop.layout import load_params
from vidgen.interop.weight_files import open_weights

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "huggingface.npz"


@functools.cache
def reference():
  with np.load(FIXTURE) as archive:
    return dict(archive)


def save(folder, name, **options):
  options = {"max_shard_bytes": SHARD_BYTES} | options if name == SHARDED else options
  return save_huggingface(folder, NETWORKS[name], parameters(name), **options)


def inputs(name):
  text = (IDS, MASK)
  return {"clip": (images(), *text), "clip_vision": (images(),), "vit": (images(),)}.get(name, text)


def outputs(name):
  found = jax.jit(NETWORKS[name].apply)({"params": parameters(name)}, *inputs(name))
  want = {k.split("/")[1]: v for k, v in reference().items() if k.startswith(f"{name}/")}
  rename = {"logits": "logits_per_image"} if "logits" not in found else {}
  pairs = {key: (np.asarray(found[rename.get(key, key)]), value) for key, value in want.items()}
  if "tokens" in pairs and len(inputs(name)) == 2:  # what padding gives means nothing
    ours, theirs = pairs["tokens"]
    pairs["tokens"] = (ours[MASK], theirs[MASK])
  return pairs


CASES = [
  Case(
    module=f"interop.huggingface, {name}",
    reference=f"{reference()['reference']}, from_pretrained",
    config="written by vidgen, random weights",
    tolerance=1e-5,
    run=functools.partial(outputs, name),
  )
  for name in NETWORKS
]


@pytest.mark.parametrize("name", NETWORKS)
def test_files_are_byte_for_byte_those_that_transformers_loaded_and_load_back(tmp_path, name):
  save(tmp_path, name)
  digests = json.loads(str(reference()["digests"]))
  want = {k.split("/")[1]: v for k, v in digests.items() if k.startswith(f"{name}/")}
  assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.iterdir()} == want
  assert ("model.safetensors.index.json" in want) == (name == SHARDED)
  network = NETWORKS[name]
  twin = huggingface._TWINS[type(network)]
  params = load_params(open_weights(tmp_path), twin.layout(network), like=shapes(name))
  for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(parameters(name)), strict=True):
    assert np.array_equal(one, other)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.module)
def test_transformers_computed_the_same_from_them(case):
  check(case)


def test_bfloat16_stays_bfloat16(tmp_path):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters("vit"))
  save_huggingface(tmp_path, NETWORKS["vit"], params)
  assert {spec.dtype for spec in open_weights(tmp_path).specs.values()} == {"bfloat16"}
  assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("damage", ["nan", "shape", "missing"])
def test_wrong_parameters_are_refused_before_anything_is_written(tmp_path, damage):
  params = parameters("t5")
  if damage == "nan":
    params["out_norm"]["scale"][0] = np.nan
  elif damage == "shape":
    params["out_norm"]["scale"] = np.zeros(3, np.float32)
  else:
    del params["out_norm"]
  with pytest.raises(CheckpointError, match="out_norm/scale"):
    save_huggingface(tmp_path / "out", NETWORKS["t5"], params)
  assert not (tmp_path / "out").exists()


def test_other_weights_in_the_folder_and_networks_without_a_twin_are_refused(tmp_path):
  save(tmp_path, "t5")
  with pytest.raises(ConfigError, match="holds other weights"):
    save(tmp_path, "vit")
  save(tmp_path, "t5")  # its own files it may write again
  with pytest.raises(ConfigError, match="object has no twin"):
    save_huggingface(tmp_path, object(), {})
