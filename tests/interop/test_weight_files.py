"""Files of weights are checked before they are believed, and read when asked for."""

import json
import os
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from weight_bytes import SIX, entry, safetensors_bytes, sound_files, torch_zip

from vidgen.errors import CheckpointError
from vidgen.interop.safetensors_files import MAX_HEADER_BYTES, write_safetensors
from vidgen.interop.tensors import MemoryWeights, TensorSpec
from vidgen.interop.weight_files import open_weights

GOOD = entry("F32", [2, 3], 0, 24)
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
          "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")  # fmt: skip


def written(tmp_path, content, name="model.safetensors"):
  path = tmp_path / name
  path.write_bytes(content)
  return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_reads_as_the_safetensors_library_wrote_it(tmp_path, dtype):
  array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
  path = written(tmp_path, safetensors.numpy.save({"a": array, "b": array[:0]}))
  weights = open_weights(path)
  assert weights.specs == {"a": TensorSpec((2, 3), dtype), "b": TensorSpec((0, 3), dtype)}
  assert np.array_equal(weights.read("a"), array) and weights.read("b").shape == (0, 3)
  assert weights.read("a").dtype == array.dtype and not weights.read("a").flags.writeable


def test_what_we_write_the_safetensors_library_reads(tmp_path):
  arrays = {"b": np.arange(3, dtype=np.float16), "a": np.arange(6.0).reshape(2, 3).T}
  specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()}
  path = tmp_path / "out.safetensors"
  write_safetensors(path, specs, parts=lambda name: list(arrays[name]), metadata={"format": "pt"})
  with safetensors.safe_open(path, framework="numpy") as file:
    assert file.metadata() == {"format": "pt"}
    for name, array in arrays.items():
      assert np.array_equal(file.get_tensor(name), array)


@pytest.mark.parametrize("wrong", ["size", "dtype"])
def test_a_file_whose_pieces_are_not_what_was_said_does_not_appear(tmp_path, wrong):
  piece = np.zeros(3 if wrong == "dtype" else 2, np.float64 if wrong == "dtype" else np.float32)
  with pytest.raises(ValueError, match="piece"):
    write_safetensors(
      tmp_path / "out", {"a": TensorSpec((3,), "float32")}, parts=lambda _: [piece], metadata={}
    )
  assert not list(tmp_path.iterdir())


HOSTILE = {
  "empty file": (b"", "does not fit"),
  "cut in the length": (b"\x01\x00", "does not fit"),
  "header beyond the file": (safetensors_bytes({"a": GOOD}, length=1 << 20), "does not fit"),
  "header of 2^63": (safetensors_bytes({"a": GOOD}, SIX, length=1 << 63), "does not fit"),
  "no JSON": (safetensors_bytes(b"{'a'", SIX), "not a safetensors file"),
  "no UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "not a safetensors file"),
  "JSON of a list": (safetensors_bytes(b"[]"), "no object"),
  "JSON without end": (safetensors_bytes(b"[" * 200_000), "not a safetensors file"),
  "NaN": (safetensors_bytes(b'{"a": NaN}'), "NaN"),
  "a number of 5000 digits": (safetensors_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "not a"),
  "a key twice": (safetensors_bytes(b'{"a": 1, "a": 2}'), "twice"),
  "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}), "text to text"),
  "no name": (safetensors_bytes({"": GOOD}, SIX), "name of 0 letters"),
  "a long name": (safetensors_bytes({"a" * 2000: GOOD}, SIX), "name of 2000 letters"),
  "an unknown key": (safetensors_bytes({"a": GOOD | {"x": 1}}, SIX), "'a'.*described"),
  "a missing key": (safetensors_bytes({"a": {"dtype": "F32"}}, SIX), "'a'.*described"),
  "an entry that is a list": (safetensors_bytes({"a": []}, SIX), "'a'.*described"),
  "an unknown dtype": (safetensors_bytes({"a": entry("F7", [6], 0, 24)}, SIX), "'a'.*dtype 'F7'"),
  "a dtype that is a list": (safetensors_bytes({"a": entry([], [6], 0, 24)}, SIX), "'a'.*dtype"),
  "a negative size": (safetensors_bytes({"a": entry("F32", [-2, -3], 0, 24)}, SIX), "'a'.*size"),
  "a size of true": (safetensors_bytes({"a": entry("F32", [6, True], 0, 24)}, SIX), "'a'.*size"),
  "a broken size": (safetensors_bytes({"a": entry("F32", [6.0], 0, 24)}, SIX), "'a'.*size"),
  "a shape of text": (safetensors_bytes({"a": entry("F32", "6", 0, 24)}, SIX), "'a'.*no list"),
  "33 dimensions": (safetensors_bytes({"a": entry("F32", [1] * 33, 0, 4)}, SIX), "'a'.*33 dim"),
  "a huge size": (safetensors_bytes({"a": entry("F32", [2**62, 4], 0, 24)}, SIX), "'a'.*beyond"),
  "a huge size of none": (
    safetensors_bytes({"a": entry("F32", [0, 2**62, 4], 0, 0)}), "'a'.*beyond"),
  "sizes that overflow to 24": (
    safetensors_bytes({"a": entry("F32", [2**32, 2**30 + 6], 0, 24)}, SIX), "'a'"),
  "a wrong shape": (safetensors_bytes({"a": entry("F32", [2, 4], 0, 24)}, SIX), "'a'.*32 bytes"),
  "a wrong dtype": (safetensors_bytes({"a": entry("F64", [2, 3], 0, 24)}, SIX), "'a'.*48 bytes"),
  "a range backwards": (safetensors_bytes({"a": entry("F32", [2, 3], 24, 0)}, SIX), "'a'.*range"),
  "a range below 0": (safetensors_bytes({"a": entry("F32", [2, 3], -24, 0)}, SIX), "'a'.*range"),
  "a range of text": (safetensors_bytes({"a": entry("F32", [2, 3], "0", 24)}, SIX), "'a'.*range"),
  "an overlap": (
    safetensors_bytes({"a": GOOD, "b": entry("F32", [2, 3], 20, 44)}, SIX + SIX), "'b'.*overlaps"),
  "the same bytes twice": (safetensors_bytes({"a": GOOD, "b": GOOD}, SIX), "'b'.*overlaps"),
  "a hole": (
    safetensors_bytes({"a": GOOD, "b": entry("F32", [1], 28, 32)}, SIX + SIX), "'b'.*hole of 4"),
  "cut short": (safetensors_bytes({"a": GOOD}, SIX[:-1]), "24 bytes, and the file has 23"),
  "bytes after the end": (safetensors_bytes({"a": GOOD}, SIX + b"x"), "the file has 25"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_by_name_before_anything_is_allocated(tmp_path, name):
  content, message = HOSTILE[name]
  path = written(tmp_path, content)
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match=f"(?s){path}: .*{message}") as error:
      open_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
  finally:
    tracemalloc.stop()
  assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500


def test_a_header_larger_than_any_is_not_even_read(tmp_path):
  path = tmp_path / "model.safetensors"
  with open(path, "wb") as file:
    file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    file.truncate(MAX_HEADER_BYTES + 100)
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match="more than"):
      open_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
  finally:
    tracemalloc.stop()


def sharded(folder, *, index=None, shards=None):
  """Two shards with `a` and `b`, and their index; parts may be given otherwise."""
  one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
  shards = shards or {one: {"a": np.zeros(2, np.float32)}, two: {"b": np.ones(3, np.float32)}}
  for name, arrays in shards.items():
    (folder / name).write_bytes(safetensors.numpy.save(arrays))
  table = {"weight_map": {"a": one, "b": two}} if index is None else index
  text = table if isinstance(table, bytes) else json.dumps(table).encode()
  (folder / "model.safetensors.index.json").write_bytes(text)
  return one, two


def test_shards_are_one_set_of_weights_whose_digest_follows_their_content(tmp_path):
  one, two = sharded(tmp_path)
  weights = open_weights(tmp_path)
  assert weights.specs == {"a": TensorSpec((2,), "float32"), "b": TensorSpec((3,), "float32")}
  assert weights.read("b").tolist() == [1, 1, 1]
  again = open_weights(tmp_path / "model.safetensors.index.json")
  assert again.digest == weights.digest
  (tmp_path / two).write_bytes(safetensors.numpy.save({"b": np.full(3, 2, np.float32)}))
  assert open_weights(tmp_path).digest != weights.digest


@pytest.mark.parametrize(
  ("index", "message"),
  [
    (b"{", "not an index"),
    (b"[" * 200_000, "not an index"),
    ({}, "weight_map"),
    ({"weight_map": {"a": 1}}, "'a'"),
    (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' comes twice"),
    ({"weight_map": {"a": "../secret.safetensors"}}, "no plain file name"),
    ({"weight_map": {"a": "/etc/passwd"}}, "no plain file name"),
    ({"weight_map": {"a": "sub/model.safetensors"}}, "no plain file name"),
    ({"weight_map": {"a": ".."}}, "no plain file name"),
    ({"weight_map": {"a": "missing.safetensors"}}, "missing.safetensors: no such file"),
    ({"weight_map": {"a": "model-00001-of-00002.safetensors",
                     "c": "model-00001-of-00002.safetensors"}}, "'c' is not in"),
    ({"weight_map": {"a": "model-00001-of-00002.safetensors",
                     "b": "model-00001-of-00002.safetensors"}}, "'b' is not in"),
    ({"weight_map": {"b": "model-00002-of-00002.safetensors",
                     "a": "model-00002-of-00002.safetensors"}}, "'a' is not in"),
  ],
)  # fmt: skip
def test_a_wrong_index_is_refused(tmp_path, index, message):
  (tmp_path / "folder").mkdir()
  (tmp_path / "secret.safetensors").write_bytes(sound_files()["sound.safetensors"])
  sharded(tmp_path / "folder", index=index)
  with pytest.raises(CheckpointError, match=message):
    open_weights(tmp_path / "folder")


def test_an_array_in_two_shards_or_in_no_line_of_the_index_is_refused(tmp_path):
  a, b = np.zeros(2, np.float32), np.ones(3, np.float32)
  one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
  sharded(tmp_path, shards={one: {"a": a}, two: {"a": a, "b": b}})
  with pytest.raises(CheckpointError, match="'a' is in another shard"):
    open_weights(tmp_path)
  sharded(tmp_path, shards={one: {"a": a}, two: {"c": a, "b": b}})
  with pytest.raises(CheckpointError, match="'c' is in a shard but not in the index"):
    open_weights(tmp_path)


def test_a_link_out_of_the_folder_is_refused_but_a_hub_cache_is_read(tmp_path):
  content = sound_files()["sound.safetensors"]
  outside, hub = tmp_path / "outside", tmp_path / "models--x"
  for folder in (outside, hub / "blobs", hub / "snapshots" / "1"):
    folder.mkdir(parents=True)
  (tmp_path / "secret").write_bytes(content)
  (outside / "model.safetensors").symlink_to(tmp_path / "secret")
  with pytest.raises(CheckpointError, match="outside of its folder"):
    open_weights(outside)
  (hub / "blobs" / "0123").write_bytes(content)
  (hub / "snapshots" / "1" / "model.safetensors").symlink_to("../../blobs/0123")
  assert list(open_weights(hub / "snapshots" / "1").specs) == ["a"]


def test_of_several_files_the_usual_name_is_taken_and_else_none(tmp_path):
  files = sound_files()
  with pytest.raises(CheckpointError, match="holds no weights"):
    open_weights(tmp_path)
  with pytest.raises(CheckpointError, match="no such file"):
    open_weights(tmp_path / "nothing.pt")
  (tmp_path / "pytorch_model.bin").write_bytes(files["sound_zip.pt"])
  assert open_weights(tmp_path).where.endswith("pytorch_model.bin")
  for name in ("x.safetensors", "y.safetensors"):
    (tmp_path / name).write_bytes(files["sound.safetensors"])
  with pytest.raises(CheckpointError, match="name one: x.safetensors, y.safetensors"):
    open_weights(tmp_path)
  (tmp_path / "model.safetensors").write_bytes(files["sound.safetensors"])
  assert open_weights(tmp_path).where.endswith("model.safetensors")


def test_a_prefix_chooses_among_nested_tensors_and_is_part_of_the_digest(tmp_path):
  header = {"x.a": entry("F32", [2], 0, 8), "y": entry("F32", [4], 8, 24)}
  path = written(tmp_path, safetensors_bytes(header, SIX))
  chosen = open_weights(path, prefix="x.")
  assert list(chosen.specs) == ["a"] and chosen.read("a").tolist() == [0, 1]
  assert chosen.digest != open_weights(path).digest
  with pytest.raises(CheckpointError, match="begins with 'z.'"):
    open_weights(path, prefix="z.")


def test_nothing_is_read_at_open_and_a_file_cut_since_is_noticed(tmp_path):
  path = written(tmp_path, sound_files()["sound.safetensors"])
  weights = open_weights(path)
  os.truncate(path, path.stat().st_size - 1)
  with pytest.raises(CheckpointError, match="has become shorter"):
    weights.read("a")


def test_arrays_in_memory_have_a_digest_of_names_shapes_dtypes_and_values():
  a = np.arange(6, dtype=np.float32)
  digests = {
    MemoryWeights({name: array}).digest
    for name, array in [
      ("a", a), ("b", a), ("a", a.reshape(2, 3)), ("a", a.view(np.int32)), ("a", a + 1)
    ]
  }  # fmt: skip
  assert len(digests) == 5
  assert MemoryWeights({"a": a}).digest in digests


MUTATIONS = 300


@pytest.mark.parametrize("name", sorted(sound_files()))
def test_mutated_files_raise_nothing_but_the_typed_error_and_allocate_little(tmp_path, name):
  """Bits flipped, bytes set, cut, doubled and moved: 300 of each format, seeded."""
  sound = sound_files()[name]
  rng = np.random.default_rng(0)
  path = tmp_path / name
  path.write_bytes(sound)
  assert open_weights(path).read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
  refused = 0
  tracemalloc.start()
  try:
    for _ in range(MUTATIONS):
      data = bytearray(sound)
      for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(len(data))), rng.integers(5)
        if kind == 0:
          data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
          data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
          del data[at:]
        elif kind == 3:
          data[at:at] = data[at : at + int(rng.integers(1, 40))]
        else:
          del data[at : at + int(rng.integers(1, 8))]
        data = data or bytearray(b"\0")
      path.write_bytes(data)
      try:
        weights = open_weights(path)
        for array in weights.specs:
          assert weights.read(array).nbytes <= len(data)
      except CheckpointError as error:
        refused += 1
        assert len(str(error).splitlines()) == 1
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
  finally:
    tracemalloc.stop()
  assert refused > MUTATIONS / 2


def test_a_zip_file_named_safetensors_is_not_taken_for_one(tmp_path):
  with pytest.raises(CheckpointError, match="not a safetensors file"):
    open_weights(written(tmp_path, torch_zip(b"", {})))
