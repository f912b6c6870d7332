"""Kept statistics are read back as they were, or refused by name."""

import io
import zipfile

import numpy as np
import pytest

from vidgen.errors import ConfigError, DataError
from vidgen.evals.reference import Entry, kept, read_entries, write_entries

KEY = {"extractor": "e", "data": "d"}
ENTRY = Entry(KEY, {"count": 3}, {"rows": np.arange(6, dtype=np.float32)})


def make():
  return ENTRY


def damaged(kind, path):
  write_entries(path, {"a": ENTRY})
  whole = path.read_bytes()
  if kind == "flipped":
    at = whole.index(np.float32(3).tobytes() + np.float32(4).tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
  elif kind == "cut":
    path.write_bytes(whole[: len(whole) // 2])
  elif kind == "empty":
    path.write_bytes(b"")
  elif kind == "text":
    path.write_text("no archive")
  elif kind == "another's":
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
  elif kind == "compressed":
    np.savez_compressed(path, head=np.zeros(10, np.uint8))
  elif kind == "objects":
    np.savez(path, head=np.array([{"a": 1}], dtype=object))
  elif kind == "huge":
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999,), }"
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
      archive.writestr("head.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    path.write_bytes(file.getvalue())
  elif kind == "exchanged":
    write_entries(path, {"a": ENTRY})
    with np.load(path) as stored:
      arrays = dict(stored)
    arrays["head"] = np.frombuffer(bytes(arrays["head"]).replace(b'"d"', b'"x"'), np.uint8)
    np.savez(path, **arrays)


KINDS = [
  "flipped",
  "cut",
  "empty",
  "text",
  "another's",
  "compressed",
  "objects",
  "huge",
  "exchanged",
]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, kind):
  path = tmp_path / "stats.npz"
  damaged(kind, path)
  with pytest.raises(DataError, match=r"stats\.npz: "):
    read_entries(path)
  with pytest.raises(DataError, match=r"stats\.npz: "):
    kept("a", key=ENTRY.key, make=make, stats=path, cache=None)


def test_entries_are_read_back_and_others_kept_beside_them(tmp_path):
  path = tmp_path / "deep" / "stats.npz"
  for name in ("a", "b"):
    assert kept(name, key=ENTRY.key, make=make, stats=path, cache=None) is ENTRY
  found = read_entries(path)
  assert (
    list(found) == ["a", "b"] and found["b"].key == ENTRY.key and found["b"].facts == ENTRY.facts
  )
  np.testing.assert_array_equal(found["b"].arrays["rows"], ENTRY.arrays["rows"])
  again = kept("a", key=ENTRY.key, make=None, stats=path, cache=None)
  assert again.facts == {"count": 3}


def test_the_data_may_be_unknown_but_not_other(tmp_path):
  path = tmp_path / "stats.npz"
  kept("a", key=ENTRY.key, make=make, stats=path, cache=None)
  assert kept("a", key={**KEY, "data": None}, make=None, stats=path, cache=None)
  with pytest.raises(ConfigError, match="data: 'd' -> 'x'"):
    kept("a", key={**KEY, "data": "x"}, make=make, stats=path, cache=None)
  with pytest.raises(ConfigError, match="extractor: 'e' -> 'f'"):
    kept("a", key={**KEY, "extractor": "f"}, make=None, stats=path, cache=None)
  with pytest.raises(ConfigError, match="no --reference, and --stats .* has no c"):
    kept("c", key=ENTRY.key, make=None, stats=path, cache=None)


def test_a_file_of_a_cache_under_another_name_is_refused(tmp_path):
  kept("a", key=ENTRY.key, make=make, stats=None, cache=tmp_path)
  (file,) = tmp_path.iterdir()
  other = {**KEY, "data": "x"}
  kept("a", key=other, make=lambda: Entry(other, {}, {}), stats=None, cache=tmp_path)
  (second,) = set(tmp_path.iterdir()) - {file}
  file.replace(second)
  with pytest.raises(DataError, match="holds what its name does not say"):
    kept("a", key=other, make=make, stats=None, cache=tmp_path)
