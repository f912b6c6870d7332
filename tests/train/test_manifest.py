"""The manifest: hashes are of logical bytes, and its own text is covered too."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vidgen.errors import CheckpointError
from vidgen.train import manifest as mf

DTYPES = [np.float32, np.float16, np.int32, np.uint8, np.bool_, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4)])
def test_an_array_hashes_as_its_bytes_in_c_order(shape, dtype):
  array = np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)
  expected = hashlib.sha256(array.tobytes()).hexdigest()
  assert mf.array_sha256(array) == expected
  assert mf.array_sha256(np.asfortranarray(array)) == expected
  if array.ndim:
    assert mf.array_sha256(array[::-1][::-1]) == expected


def test_big_endian_hashes_as_little_endian():
  array = np.arange(5, dtype="<i4")
  assert mf.array_sha256(array.astype(">i4")) == mf.array_sha256(array)


@settings(deadline=None)  # the time of an example says nothing on a busy machine
@given(hnp.arrays(np.float32, st.integers(1, 20)), st.data())
def test_any_flipped_bit_changes_the_hash(array, data):
  bits = array.view(np.uint32).copy()
  bits[data.draw(st.integers(0, len(bits) - 1))] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
  assert mf.array_sha256(bits.view(np.float32)) != mf.array_sha256(array)


def record(**changes):
  fields = {"item": "params", "path": "w", "shape": (2,), "dtype": "int32", "sha256": "0" * 64}
  return mf.ArrayRecord(**{**fields, **changes})


def test_digests_cover_name_shape_dtype_and_contents_and_no_order():
  base = [record(), record(path="v"), record(item="opt_state"), record(item="counters")]
  digests = mf.digests(base, [{}])
  assert mf.digests(base[::-1], [{}]) == digests
  for change in ({"path": "x"}, {"shape": (1, 2)}, {"dtype": "uint32"}, {"sha256": "1" * 64}):
    for index, name in enumerate(["params", "params", "optimizer", "optimizer"]):
      changed = list(base)
      changed[index] = record(**{"item": base[index].item, **change})
      now = mf.digests(changed, [{}])
      assert {k for k in now if now[k] != digests[k]} == {name}
  assert mf.digests(base, [{}, {}])["data"] != digests["data"]


def manifest(**changes):
  fields = {
    "format": mf.FORMAT, "step": 3, "versions": {"jax": "1"}, "config": "c",
    "files": (mf.FileRecord("a/b", 3, "d"),), "arrays": (record(shape=()),),
    "digests": {"ema": "e"},
  }  # fmt: skip
  return mf.Manifest(**{**fields, **changes})


def test_a_manifest_reads_back_as_written_and_leaves_no_other_file(tmp_path):
  mf.write(tmp_path, manifest())
  assert mf.read(tmp_path) == manifest()
  assert [p.name for p in tmp_path.iterdir()] == [mf.FILE]


def test_any_changed_byte_of_a_manifest_is_found(tmp_path):
  mf.write(tmp_path, manifest())
  path = tmp_path / mf.FILE
  contents = path.read_bytes()
  for position in range(len(contents)):
    changed = bytes([contents[position] ^ 1 << position % 8])
    path.write_bytes(contents[:position] + changed + contents[position + 1 :])
    with pytest.raises(CheckpointError, match=mf.FILE):
      mf.read(tmp_path)


def test_another_format_is_refused_by_its_number(tmp_path):
  mf.write(tmp_path, manifest(format=mf.FORMAT + 1))
  with pytest.raises(CheckpointError, match=f"format {mf.FORMAT + 1}; this version reads"):
    mf.read(tmp_path)


def test_an_oversized_manifest_is_refused_unread(tmp_path):
  with open(tmp_path / mf.FILE, "wb") as file:
    file.truncate(mf.MAX_BYTES + 1)
  with pytest.raises(CheckpointError, match="larger than"):
    mf.read(tmp_path)


def test_nothing_in_a_manifest_depends_on_the_time_or_the_place(tmp_path):
  for name in ("one", "other"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("x")
    mf.write(tmp_path / name, manifest(files=tuple(mf.record_files(tmp_path / name))))
  one, other = (tmp_path / name / mf.FILE for name in ("one", "other"))
  assert one.read_bytes() == other.read_bytes()
