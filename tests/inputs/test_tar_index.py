"""The index of a tar shard: everything is found, every damage is seen, names are only keys."""

import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import write_tar

from vidgen.errors import DataError
from vidgen.inputs import tar_index
from vidgen.inputs.tar_index import build_index, load_index

MEMBERS = [
  (f"{i:04d}.{s}", f"{s} {i} ".encode() * (40 + i)) for i in range(6) for s in ("a", "txt")
]


def read_all(path, index):
  """{key: {suffix: bytes}} by the offsets of an index."""
  data = path.read_bytes()
  return {
    key: {s: data[o : o + n] for s, (o, n) in index.members(i).items()}
    for i, key in enumerate(index.keys)
  }


def shard(path):
  write_tar(path / "00000.tar", MEMBERS)
  return path / "00000.tar"


def test_members_are_where_the_index_says(tmp_path):
  path = shard(tmp_path)
  index = build_index(path)
  assert index.problems == () and len(index) == 6
  expected = {}
  for name, data in MEMBERS:
    expected.setdefault(name[:4], {})[name[5:]] = data
  assert read_all(path, index) == expected


NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=130)


@settings(max_examples=40, deadline=None)
@given(
  names=st.lists(st.tuples(NAME, NAME), min_size=1, max_size=6, unique=True),
  form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
  sizes=st.lists(st.sampled_from([0, 1, 511, 512, 513, 5000]), min_size=6, max_size=6),
)
def test_agrees_with_tarfile(tmp_path_factory, names, form, sizes):
  path = tmp_path_factory.mktemp("tar") / "x.tar"
  with tarfile.open(path, "w", format=form) as tar:
    for (folder, name), size in zip(names, sizes, strict=False):
      info = tarfile.TarInfo(f"{folder}/{name}")
      info.size = size
      tar.addfile(info, io.BytesIO(os.urandom(size)))
  expected = {}
  with tarfile.open(path) as tar:
    for member in tar.getmembers():
      match = tar_index.NAME.match(member.name)
      if match and member.isreg() and not member.name.rsplit("/", 1)[-1].startswith("__"):
        suffixes = expected.setdefault(match[1], {})
        suffixes.setdefault(match[2].lower(), tar.extractfile(member).read())
  assert read_all(path, build_index(path)) == expected


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar program")
@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "v7"])
def test_reads_what_the_tar_program_writes(tmp_path, form):
  name = "k" * 60 + ".txt"
  (tmp_path / name).write_bytes(b"hello")
  command = ["tar", f"--format={form}", "-cf", "x.tar", name]
  subprocess.run(command, cwd=tmp_path, check=True)
  index = build_index(tmp_path / "x.tar")
  assert index.problems == ()
  assert read_all(tmp_path / "x.tar", index) == {"k" * 60: {"txt": b"hello"}}


def test_the_key_rule_is_that_of_webdataset(tmp_path):
  path = tmp_path / "x.tar"
  data = b"x"
  write_tar(
    path,
    [
      ("dir.d/a.b.JPG", data),
      ("dir.d/a.txt", data),
      ("__meta__.json", data),
      ("dir.d/__skip.txt", data),
      ("nosuffix", data),
      ("other.txt", data),
      ("dir.d/a.cls", data),  # interleaved: still the same sample
    ],
  )
  index = build_index(path)
  found = {key: sorted(parts) for key, parts in read_all(path, index).items()}
  assert found == {"dir.d/a": ["b.jpg", "cls", "txt"], "other": ["txt"]}


def test_of_two_members_of_one_name_the_first_counts_and_the_second_is_listed(tmp_path):
  path = tmp_path / "x.tar"
  write_tar(path, [("a.txt", b"first"), ("a.TXT", b"second"), ("b.txt", b"b")])
  index = build_index(path)
  assert read_all(path, index)["a"] == {"txt": b"first"}
  assert index.problems == ("key 'a' has two members .txt",)


def test_hostile_members_are_keys_or_nothing(tmp_path):
  """No name leaves the shard as a path, and links and devices are no samples."""
  path = tmp_path / "in" / "x.tar"
  path.parent.mkdir()
  with tarfile.open(path, "w") as tar:
    for name in ("../../evil.txt", "/etc/evil.txt"):
      info = tarfile.TarInfo(name)
      info.size = 1
      tar.addfile(info, io.BytesIO(b"e"))
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE)):
      info = tarfile.TarInfo(f"link{number}.txt")
      info.type, info.linkname = kind, "/etc/passwd"
      tar.addfile(info)
  before = sorted(p for p in tmp_path.rglob("*"))
  index = load_index(path)
  assert index.keys == ("../../evil", "/etc/evil")
  after = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
  assert [p.name for p in after] == ["x.tar.index.npz"]


CUTS = {
  "inside a payload": (9 * 1024 + 600, "cut short"),
  "at a boundary": (8 * 1024, "without the end-of-archive"),
  "inside a header": (8 * 1024 + 100, "inside a header"),
}


@pytest.mark.parametrize("where", CUTS)
def test_a_cut_is_seen_and_what_lies_before_it_is_kept(tmp_path, where):
  path = tmp_path / "x.tar"
  write_tar(path, [(f"{i:04d}.txt", bytes([65 + i]) * 500) for i in range(20)])
  size, said = CUTS[where]
  os.truncate(path, size)
  index = build_index(path)
  assert len(index.problems) == 1 and said in index.problems[0]
  assert len(index) == size // 1024
  assert all(set(p["txt"]) == {65 + i} for i, p in enumerate(read_all(path, index).values()))


def test_a_lost_end_of_archive_is_seen(tmp_path):
  path = tmp_path / "x.tar"
  write_tar(path, [("a.txt", b"a" * 512)])
  for size in (1024, 1536):
    os.truncate(path, size)
    assert len(build_index(path).problems) == 1


@settings(max_examples=60, deadline=None)
@given(member=st.integers(0, 11), byte=st.integers(0, 511), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_header_is_seen_and_costs_one_member(
  tmp_path_factory, member, byte, bit
):
  path = tmp_path_factory.mktemp("flip") / "x.tar"
  write_tar(path, [(f"{i:04d}.txt", bytes([65 + i]) * 500) for i in range(12)])
  data = bytearray(path.read_bytes())
  data[member * 1024 + byte] ^= 1 << bit
  path.write_bytes(data)
  index = build_index(path)
  found = read_all(path, index)
  whole = {f"{i:04d}": {"txt": bytes([65 + i]) * 500} for i in range(12)}
  if index.problems:
    del whole[f"{member:04d}"]
    assert found == whole
  else:  # the checksum field is blank-padded: such a flip changes no meaning
    assert found == whole and 148 <= byte < 156


def test_zeroed_sectors_are_not_taken_for_the_end(tmp_path):
  path = tmp_path / "x.tar"
  write_tar(path, [(f"{i:04d}.txt", bytes([65 + i]) * 500) for i in range(12)])
  data = bytearray(path.read_bytes())
  data[4096 : 4096 + 2048] = bytes(2048)
  path.write_bytes(data)
  index = build_index(path)
  assert len(index) == 10 and "0006" in index.keys and "zero blocks" in index.problems[0]


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_refused_in_order(tmp_path_factory, data):
  path = tmp_path_factory.mktemp("junk") / "x.tar"
  path.write_bytes(data)
  index = build_index(path)
  assert index.problems or data.strip(b"\0") == b""


def test_a_file_that_is_not_there_is_a_data_error(tmp_path):
  with pytest.raises(DataError, match="No such file"):
    load_index(tmp_path / "x.tar")


def test_the_cache_is_used_until_the_shard_changes(tmp_path, monkeypatch):
  path = shard(tmp_path)
  built = load_index(path)
  monkeypatch.setattr(tar_index, "build_index", lambda path: pytest.fail("built again"))
  cached = load_index(path)
  assert cached.keys == built.keys and cached.digest == built.digest
  np.testing.assert_array_equal(cached.offset, built.offset)
  monkeypatch.undo()
  write_tar(path, MEMBERS[:4])
  assert len(load_index(path)) == 2


def test_many_threads_read_caches(tmp_path):
  """What runs in the midst of parsing made Python's parser fail: here the collection of garbage."""
  path = shard(tmp_path)
  digest = load_index(path).digest
  interval, threshold = sys.getswitchinterval(), gc.get_threshold()

  def watch(*_):
    pass

  gc.callbacks.append(watch)
  try:
    sys.setswitchinterval(1e-6)
    gc.set_threshold(1)
    with ThreadPoolExecutor(16) as pool:
      indices = list(pool.map(load_index, [path] * 200))
  finally:
    gc.callbacks.remove(watch)
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)
  assert {index.digest for index in indices} == {digest}


def test_the_digest_sees_one_flipped_bit_of_a_payload(tmp_path):
  path = shard(tmp_path)
  before = load_index(path).digest
  data = bytearray(path.read_bytes())
  data[600] ^= 1
  path.write_bytes(data)
  assert load_index(path).digest != before


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "pickle"])
def test_a_damaged_or_hostile_cache_is_not_believed(tmp_path, damage):
  path = shard(tmp_path)
  expected = load_index(path)
  cache = tmp_path / "00000.tar.index.npz"
  if damage == "pickle":
    bomb = np.empty(1, object)
    bomb[0] = Bomb(tmp_path / "ran")
    np.savez(cache, format=np.int64(1), stamp=bomb)
  else:
    cache.write_bytes({"garbage": b"x" * 99, "empty": b"", "cut": cache.read_bytes()[:800]}[damage])
  assert load_index(path).digest == expected.digest
  assert not (tmp_path / "ran").exists()


class Bomb:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_a_cache_that_points_outside_the_shard_is_not_believed(tmp_path):
  path = shard(tmp_path)
  expected = load_index(path)
  cache = tmp_path / "00000.tar.index.npz"
  with np.load(cache) as file:
    fields = dict(file)
  fields["members"][1] += 10**9
  np.savez(cache, **fields)
  np.testing.assert_array_equal(load_index(path).offset, expected.offset)


def test_the_cache_goes_elsewhere_when_it_cannot_lie_beside(tmp_path, monkeypatch):
  path = shard(tmp_path / "set")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  wrote = tar_index._write_cache

  def refuse(place, index, stamp):
    if place.parent == path.parent:
      raise PermissionError(13, "Permission denied")
    wrote(place, index, stamp)

  monkeypatch.setattr(tar_index, "_write_cache", refuse)
  load_index(path)
  assert [p.suffix for p in (tmp_path / "cache" / "vidgen" / "index").iterdir()] == [".npz"]
  monkeypatch.setattr(tar_index, "build_index", lambda path: pytest.fail("built again"))
  assert len(load_index(path)) == 6


def test_keys_that_are_not_utf8_survive_the_cache(tmp_path):
  path = tmp_path / "x.tar"
  with tarfile.open(path, "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as tar:
    tar.addfile(tarfile.TarInfo("caf\xe9.txt"))
  assert load_index(path).keys == load_index(path).keys == ("caf\udce9",)
  json.dumps(load_index(path).keys[0])
