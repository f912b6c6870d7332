"""`load_text_encoder` reads any encoder's folder, and refuses what is not sound."""

import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from fixtures.exported_networks import IDS, MASK, NETWORKS, parameters
from weight_bytes import safetensors_bytes, state, storage, tensor, torch_zip

from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES
from vidgen.errors import CheckpointError
from vidgen.interop import load_text_encoder
from vidgen.interop.huggingface import save_huggingface
from vidgen.interop.weight_files import open_weights

ENCODERS = ("t5", "umt5", "clip", "clip_text")


def expected(name):
  network, params = NETWORKS[name], parameters(name)
  if name == "clip":
    network, params = network.text, params["text"]
  return np.asarray(jax.jit(network.apply)({"params": params}, IDS, MASK)["tokens"])


@pytest.fixture
def folder(tmp_path):
  return save_huggingface(tmp_path / "t5", NETWORKS["t5"], parameters("t5"))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_kind_of_encoder_gives_its_networks_tokens(tmp_path, name):
  folder = save_huggingface(tmp_path, NETWORKS[name], parameters(name))
  apply, params = load_text_encoder(folder)
  found = jax.jit(apply)(params, IDS, MASK)
  assert found.dtype == np.float32 and found.shape == (2, 6, 16)
  np.testing.assert_allclose(found, expected(name), atol=1e-6)


def test_a_pytorch_file_gives_the_same_bits_as_safetensors(tmp_path, folder):
  """pytorch_model.bin, made here byte by byte, with the embedding under its second name."""
  weights = open_weights(folder)
  items, storages = {}, {}
  for i, name in enumerate(weights.specs):
    array = np.ascontiguousarray(weights.read(name))
    strides = [stride // 4 for stride in array.strides]
    held = storage(str(i), size=array.size)
    name = name.replace("shared", "encoder.embed_tokens")
    items[name] = tensor(held=held, shape=array.shape, strides=strides)
    storages[str(i)] = array.tobytes()
  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  (tmp_path / "pytorch_model.bin").write_bytes(torch_zip(state(items), storages))
  one, other = load_text_encoder(folder).params, load_text_encoder(tmp_path).params
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert np.array_equal(a, b)


def test_bfloat16_and_the_cache(tmp_path, folder):
  cache = tmp_path / "cache"
  apply, first = load_text_encoder(folder, dtype="bfloat16", cache=cache)
  _, second = load_text_encoder(folder, dtype="bfloat16", cache=cache)
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert a.dtype == b.dtype == "bfloat16" and np.array_equal(a, b)
  found = jax.jit(apply)(first, IDS, MASK)
  assert found.dtype == np.float32
  want = expected("t5")
  assert 0 < np.abs(found - want)[MASK].max() < 0.1 * np.abs(want[MASK]).max()
  assert len(list(cache.glob("*.safetensors"))) == 1


def test_on_a_mesh_the_parameters_lie_by_the_rules_and_the_tokens_are_the_same(folder):
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  apply, params = load_text_encoder(folder, mesh=mesh)
  query = params["blocks"]["attention"]["query"]  # layers, embed, heads, kv
  assert tuple(query.sharding.spec) == (None, "fsdp", "tensor")
  with on_mesh(mesh, rules=DEFAULT_RULES):
    found = jax.jit(apply)(params, IDS, MASK)
  np.testing.assert_allclose(np.asarray(found)[MASK], expected("t5")[MASK], atol=1e-5)


def rewritten(folder, change):
  path = folder / "model.safetensors"
  arrays = dict(safetensors.numpy.load_file(path))
  change(arrays)
  path.write_bytes(safetensors.numpy.save(arrays))


def hostile(folder, kind, canary):
  path = folder / "model.safetensors"
  norm = "encoder.final_layer_norm.weight"
  if kind == "pickle":

    class Call:
      def __reduce__(self):
        return os.system, (f"touch {canary}",)

    path.unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_zip(pickle.dumps({"a": Call()}, 2), {}))
  elif kind == "huge header":
    path.write_bytes(safetensors_bytes(b"{}", length=1 << 40))
  elif kind == "overlap":
    size = path.read_bytes()
    tree = json.loads(size[8 : 8 + int.from_bytes(size[:8], "little")])
    first, last = tree[norm]["data_offsets"]
    tree[norm]["data_offsets"] = [first - 4, last - 4]
    path.write_bytes(safetensors_bytes(tree, size[8 + int.from_bytes(size[:8], "little") :]))
  elif kind == "wrong shape":
    rewritten(folder, lambda arrays: arrays.update({norm: np.zeros(17, np.float32)}))
  elif kind == "missing array":
    rewritten(folder, lambda arrays: arrays.pop(norm))
  elif kind == "truncated":
    path.write_bytes(path.read_bytes()[:-7])
  elif kind == "NaN":
    rewritten(folder, lambda arrays: arrays.update({norm: np.full(16, np.nan, np.float32)}))
  elif kind == "no weights":
    path.unlink()
  elif kind == "no config":
    (folder / "config.json").unlink()
  elif kind == "config no JSON":
    (folder / "config.json").write_bytes(b"\x80\x02cposix\nsystem\n.")
  elif kind == "config too deep":
    (folder / "config.json").write_bytes(b"[" * 100_000)
  else:
    field, value = {
      "unknown model": ("model_type", "llama"),
      "model of a list": ("model_type", ["t5"]),
      "a size of text": ("d_model", "16"),
      "a huge size": ("d_model", 1 << 60),
      "a size below 0": ("num_layers", -1),
      "another size": ("d_ff", 25),
      "a number of text": ("layer_norm_epsilon", "x"),
    }[kind]
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))


KINDS = {
  "pickle": "posix system",
  "huge header": "does not fit",
  "overlap": "overlaps",
  "wrong shape": r"- encoder.final_layer_norm.weight \[17\]",
  "missing array": r"\+ encoder.final_layer_norm.weight \[16\]",
  "truncated": "bytes",
  "NaN": "not finite: out_norm/scale",
  "no weights": "holds no weights",
  "no config": "config.json",
  "config no JSON": "config.json",
  "config too deep": "config.json",
  "unknown model": "model_type 'llama'",
  "model of a list": "model_type a list",
  "a size of text": "d_model: '16'",
  "a huge size": "d_model: ",
  "a size below 0": "num_layers: -1",
  "another size": r"\[25,16\]",
  "a number of text": "not a sound config",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_folder_is_refused_with_exit_code_4_and_nothing_runs(tmp_path, folder, kind):
  hostile(folder, kind, tmp_path / "canary")
  with pytest.raises(CheckpointError, match=KINDS[kind]) as error:
    load_text_encoder(folder)
  assert error.value.exit_code == 4 and str(folder) in str(error.value)
  assert not (tmp_path / "canary").exists()


def test_importing_the_package_brings_no_network_along():
  code = "import sys, vidgen.interop; assert 'jax' not in sys.modules and 'flax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
