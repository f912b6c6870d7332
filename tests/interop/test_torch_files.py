"""PyTorch's files are read without PyTorch, and without running anything in them."""

import collections
import copyreg
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from weight_bytes import (
  MAGIC,
  SIX,
  SYSTEM,
  number,
  sound_files,
  state,
  storage,
  tensor,
  text,
  torch_legacy,
  torch_zip,
  zip_bytes,
)

from vidgen.errors import CheckpointError
from vidgen.interop.weight_files import open_weights
from vidgen.interop.zip_members import members

FILES = Path(__file__).resolve().parents[1] / "fixtures" / "weight_files"


def written(tmp_path, content, name="weights.pt"):
  path = tmp_path / name
  path.write_bytes(content)
  return path


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "script.pt"])
def test_every_tensor_of_a_file_that_pytorch_wrote_is_read_bit_for_bit(name):
  """All dtypes, views that share memory, parameters, nested containers, a TorchScript module."""
  with np.load(FILES / "expected.npz") as archive:
    want = {k.split("/", 1)[1]: archive[k] for k in archive.files if k.startswith(f"{name}/")}
  weights = open_weights(FILES / name)
  assert set(weights.specs) == set(want)
  for key, array in want.items():
    found = weights.read(key)
    assert weights.specs[key].shape == found.shape == array.shape, key
    assert found.dtype.name == weights.specs[key].dtype
    assert not found.flags.writeable or not found.size, key
    assert found.dtype == array.dtype or found.dtype in (
      ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)  # fmt: skip
    assert np.array_equal(found.astype(array.dtype), array), key


def test_a_view_is_no_copy_of_its_file(tmp_path):
  a = open_weights(FILES / "zip.pt").read("views.transposed")
  assert a.strides == (4, 16) and a.base is not None


def test_what_a_python_2_wrote_is_read(tmp_path):
  """Byte strings, tensors without hooks, pairs of an ordered dict in one list; as of 2017."""

  def short(value):
    return b"U" + bytes([len(value)]) + value.encode()

  held = storage().replace(text("storage"), short("storage")).replace(text("0"), short("0"))
  pickled = b"".join(
    [b"\x80\x02ccollections\nOrderedDict\n(](](", short("a"),
     b"ctorch._utils\n_rebuild_tensor\n(", held, number(0), b"K\x02K\x03\x86K\x03K\x01\x86tReetR."]
  )  # fmt: skip
  weights = open_weights(written(tmp_path, torch_legacy(pickled, {"0": (6, SIX)})))
  assert weights.read("a").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64", "uint8"])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_files_of_the_other_byte_order_are_read(tmp_path, form, dtype):
  array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
  part = 4 if dtype == "complex64" else array.itemsize
  content = array.view(f"u{part}").byteswap().tobytes()
  kind = {"float32": "Float", "bfloat16": "BFloat16", "complex64": "ComplexFloat", "uint8": "Byte"}
  pickled = state({"a": tensor(held=storage(kind=f"torch\n{kind[dtype]}Storage"))})
  if form == "zip":
    data = torch_zip(pickled, {"0": content}, byteorder=b"big")
  else:
    data = torch_legacy(pickled, {"0": (6, content)}, little=False)
  assert np.array_equal(open_weights(written(tmp_path, data)).read("a"), array)


def evil(function, *arguments):
  """A pickle of an object that calls `function` when it is unpickled."""

  class Call:
    def __reduce__(self):
      return function, arguments

  return Call()


def pickled_evils(canary):
  """Pickles that would make the file `canary`, or do something else that weights never need."""
  command = f"touch {canary}"
  call = evil(os.system, command)
  named = f"cposix\nsystem\n({text(command).decode('latin-1')}tR.".encode("latin-1")
  return {
    "a call": (pickle.dumps(call, 2), "posix system"),
    "a call by protocol 4": (pickle.dumps(call, 4), "posix system"),
    "a call by protocol 0": (pickle.dumps(call, 0), "posix system"),
    "a call deep in a state": (pickle.dumps({"state_dict": {"a": [call]}}, 2), "posix system"),
    "a call as a key": (pickle.dumps({evil(os.system, command): 1}, 2), "posix system"),
    "eval": (pickle.dumps(evil(eval, f"open({str(canary)!r}, 'w')"), 2), "eval"),
    "exec": (pickle.dumps(evil(exec, f"open({str(canary)!r}, 'w')"), 2), "exec"),
    "open": (pickle.dumps(evil(open, str(canary), "w"), 2), "open"),
    "getattr": (pickle.dumps(evil(getattr, "a", "upper"), 2), "getattr"),
    "an instance": (pickle.dumps(types.SimpleNamespace(a=1), 2), "SimpleNamespace"),
    "numpy's arrays": (pickle.dumps(np.zeros(2), 2), "numpy"),
    "a method": (b"\x80\x02ctorch.storage\nFloatStorage\n.", "torch.storage FloatStorage"),
    "torch.load": (b"\x80\x02ctorch.serialization\nload\n.", "torch.serialization load"),
    "a module": (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.", "Linear"),
    "a name that looks like TorchScript's": (b"\x80\x02c__torch__evil\nX\n)\x81.", "__torch__evil"),
    "TorchScript's, called": (b"\x80\x02c__torch__\nX\n)R.", "__torch__ X"),
    "a storage, called": (b"\x80\x02ctorch\nFloatStorage\n)R.", "torch FloatStorage"),
    "a dtype, called": (b"\x80\x02ctorch\nfloat32\n)R.", "it calls"),
    "a set": (pickle.dumps({1, 2}, 4), "EMPTY_SET"),
    "an extension code": (b"\x80\x02\x82\x01.", "EXT1"),
    "INST": (b"(S'x'\niposix\nsystem\n.", "INST"),
    "OBJ": (b"(cposix\nsystem\nS'x'\no.", "posix system"),
    "NEWOBJ_EX": (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "an object made of a function": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "OrderedDict"),
    "a persistent name": (b"Pstorage\n.", "PERSID"),
    "a persistent module": (b"\x80\x02(X\x06\x00\x00\x00moduleNNNNtQ.", "'module'"),
    "state of a number": (b"\x80\x02K\x01}b.", "state of a int"),
    "the registry": (pickle.dumps(evil(copyreg.add_extension, "a", "b", 1), 2), "copy"),
    "after the end": (state({"a": tensor()})[:-1] + named, "posix system"),
  }  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("name", pickled_evils(""))
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(tmp_path, name, form):
  canary = tmp_path / "canary"
  pickled, message = pickled_evils(canary)[name]
  content = {
    "zip": torch_zip(pickled, {"0": SIX}),
    "legacy": torch_legacy(pickled, {"0": (6, SIX)}),
    "plain": pickled,
  }[form]
  path = written(tmp_path, content)
  with pytest.raises(CheckpointError, match=None if form == "plain" else message) as error:
    open_weights(path)
  assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1
  assert not canary.exists()


def test_the_canary_would_sing(tmp_path):
  """The pickles above do what they are for, where they are unpickled."""
  pickled = pickled_evils(tmp_path / "canary")["a call deep in a state"][0]
  pickle.loads(pickled)  # noqa: S301 (it is made here)
  assert (tmp_path / "canary").exists()


def many(count, value=b"]"):
  return b"\x80\x02(" + value * count + b"l."


def laughs(depth):
  """A list of ten times a list of ten times a list of ... a tensor."""
  layers = b"q\x01" + b"".join(b"0](" + b"h\x01" * 10 + b"eq\x01" for _ in range(depth))
  return b"\x80\x02N" + tensor() + layers + b"\x86."


BOMBS = {
  "a million opcodes and more": many(1_000_001),
  "a laugh of 10^12": laughs(12),
  "a list in itself": b"\x80\x02]q\x00h\x00a.",
  "a thousand lists in each other": b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
  "a long list called again and again":
    b"\x80\x02](" + b"]" * 100_000 + b"eq\x01(" + b"ctorch\nSize\nh\x01\x85R" * 1000 + b"l.",
  "many pairs, called again and again":
    b"\x80\x02](" + b"NN\x86" * 100_000 + b"eq\x01("
    + b"ccollections\nOrderedDict\nh\x01\x85R" * 200 + b"l.",
  "a text of 4 GB that is not there": b"\x80\x02X\xff\xff\xff\xff.",
  "a text of 2^63 that is not there": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
  "an integer of a million bytes": state(
    {"a": tensor(offset=0).replace(
      number(0), b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20))}),
}  # fmt: skip


RUN = """
import resource, sys, time
from vidgen.errors import CheckpointError
from vidgen.interop.weight_files import open_weights
used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (768 << 20),) * 2)
for path in sys.argv[1:]:
  begin = time.process_time()
  try:
    open_weights(path)
  except CheckpointError:
    took = time.process_time() - begin
    assert took < 30, (path, took)
  else:
    raise AssertionError(path)
print("refused", len(sys.argv) - 1)
"""


def test_pickle_bombs_are_refused_in_bounded_memory_and_time(tmp_path):
  """In a process of its own: with every call type-checked, two million opcodes take minutes."""
  paths = [
    str(written(tmp_path, torch_zip(bomb, {"0": SIX}), f"{i}.pt"))
    for i, bomb in enumerate(BOMBS.values())
  ]
  done = subprocess.run([sys.executable, "-c", RUN, *paths], capture_output=True, text=True)
  assert done.stdout == f"refused {len(BOMBS)}\n", done.stderr[-2000:]


BAD_VIEWS = {
  "beyond its storage": (tensor(offset=1), "element 6"),
  "with strides beyond it": (tensor(strides=(4, 1)), "element 6"),
  "larger than its storage": (tensor(shape=(1 << 40,), strides=(0,)), "larger than its storage"),
  "of a shape beyond any": (tensor(shape=(1 << 45, 1 << 45), strides=(0, 0)), "beyond any"),
  "with a negative stride": (tensor(strides=(-3, 1)), "-3 is no size"),
  "with a negative offset": (tensor(offset=-1), "-1 is no size"),
  "with too few strides": (tensor(strides=(1,)), "differ in length"),
  "of a storage that is not there": (tensor(held=storage("1")), "'1' is missing"),
  "of a storage outside": (tensor(held=storage("../data.pkl")), "missing"),
  "of a smaller storage than said": (tensor(held=storage(size=7)), "24 bytes, not 7"),
  "of a larger storage than said": (tensor(held=storage(size=5)), "24 bytes, not 5"),
  "of doubles": (tensor(held=storage(kind="torch\nDoubleStorage")), "24 bytes, not 6"),
  "of a numbered storage": (tensor(held=storage().replace(text("0"), b"K\x00")), "int where a str"),
  "of quantised numbers": (tensor(held=storage(kind="torch\nQInt8Storage")), "QInt8Storage"),
  "of no storage": (tensor(held=b"N"), "NoneType where a Storage"),
  "of a part of a storage": (tensor(held=storage(more=b"(X\x01\x00\x00\x001K\x00K\x03t")), "part"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_VIEWS)
def test_a_view_that_is_not_within_its_memory_is_refused(tmp_path, name):
  value, message = BAD_VIEWS[name]
  with pytest.raises(CheckpointError, match=message):
    open_weights(written(tmp_path, torch_zip(state({"a": value}), {"0": SIX})))


def test_two_tensors_of_one_name_are_refused(tmp_path):
  nested = b"}" + text("b") + tensor() + b"s"
  with pytest.raises(CheckpointError, match=r"two tensors are named 'a\.b'"):
    pickled = state({"a.b": tensor(), "a": nested})
    open_weights(written(tmp_path, torch_zip(pickled, {"0": SIX})))


def changed_zip(change, **members_more):
  data = bytearray(torch_zip(state({"a": tensor()}), {"0": SIX}))
  return bytes(change(data) or data)


def set_all(data, signature, offset, value):
  at = data.find(signature)
  while at >= 0:
    data[at + offset : at + offset + len(value)] = value
    at = data.find(signature, at + 1)


BAD_ZIPS = {
  "compressed storage": lambda: torch_zip(
    state({"a": tensor()}), {"0": SIX}, compress=["archive/data/0"]),
  "compressed pickle, a bomb": lambda: torch_zip(
    b"\x80\x02" + b"N" * 20_000_000, {}, compress=["archive/data.pkl"]),
  "no pickle": lambda: zip_bytes({"archive/data/0": SIX}),
  "two pickles": lambda: zip_bytes({"a/data.pkl": b"N.", "b/data.pkl": b"N."}),
  "a byte order of nobody": lambda: torch_zip(b"N.", {}, byteorder=b"middle"),
  "cut short": lambda: changed_zip(lambda d: d[:-30]),
  "encrypted": lambda: changed_zip(lambda d: set_all(d, b"PK\x01\x02", 8, b"\x01")),
  "sizes that differ": lambda: changed_zip(lambda d: set_all(d, b"PK\x01\x02", 24, b"\xff")),
  "all members at one place": lambda: changed_zip(
    lambda d: set_all(d, b"PK\x01\x02", 42, b"\0\0\0\0")),
  "a member beyond the directory": lambda: changed_zip(
    lambda d: set_all(d, b"PK\x01\x02", 42, b"\xff\xff\0\0")),
  "a directory of 4 GB": lambda: changed_zip(
    lambda d: set_all(d, b"PK\x05\x06", 12, b"\xf0\xff\xff\xff")),
  "several disks": lambda: changed_zip(lambda d: set_all(d, b"PK\x05\x06", 4, b"\x01")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_a_damaged_or_hostile_archive_is_refused(tmp_path, name):
  path = written(tmp_path, BAD_ZIPS[name]())
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match=str(path)):
      open_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
  finally:
    tracemalloc.stop()


def test_a_member_within_another_is_refused(tmp_path):
  """Each is sound by itself; together they let few bytes stand for many arrays."""
  name = "archive/data/1"
  local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 24, 24, len(name), 0)
  outer = local + name.encode() + SIX
  data = bytearray(torch_zip(state({"a": tensor(held=storage("1"))}), {"0": outer, "1": SIX}))
  assert open_weights(written(tmp_path, bytes(data))).read("a").shape == (2, 3)
  entry = data.rindex(b"PK\x01\x02")  # of the last member
  data[entry + 42 : entry + 46] = struct.pack("<L", data.index(outer))
  with pytest.raises(CheckpointError, match="overlap"):
    open_weights(written(tmp_path, bytes(data)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_comes_twice_is_refused(tmp_path):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("archive/data.pkl", b"N.")
    archive.writestr("archive/data.pkl", b"N.")
  with pytest.raises(CheckpointError, match="comes twice"):
    open_weights(written(tmp_path, out.getvalue()))


def test_archives_with_64_bit_sizes_are_read(tmp_path):
  """As files of more than 4 GB have them, here made by hand around a small one."""
  data = torch_zip(state({"a": tensor()}), {"0": SIX})
  end = data.rindex(b"PK\x05\x06")
  count, _, length, begin = struct.unpack_from("<2H2L", data, end + 8)
  directory, at = b"", begin
  while at < begin + length:
    head = bytearray(data[at : at + 46])
    packed, plain, names = struct.unpack_from("<2LH", head, 20)
    (local,) = struct.unpack_from("<L", head, 42)
    head[20:28], head[42:46] = b"\xff" * 8, b"\xff" * 4
    extra = struct.pack("<2H3Q", 1, 24, plain, packed, local)
    head[30:32] = struct.pack("<H", len(extra))
    directory += bytes(head) + data[at + 46 : at + 46 + names] + extra
    at += 46 + names
  end64 = struct.pack(
    "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), begin
  )
  locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, begin + len(directory), 1)
  last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
  path = written(tmp_path, data[:begin] + directory + end64 + locator + last)
  with zipfile.ZipFile(path) as archive:  # the standard library agrees
    assert archive.read("archive/data/0") == SIX
  assert open_weights(path).read("a").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_members_lie_where_the_standard_library_finds_them(tmp_path):
  path = FILES / "script.pt"
  found = members(path)
  with zipfile.ZipFile(path) as archive:
    assert set(found) == set(archive.namelist())
    content = path.read_bytes()
    for name, member in found.items():
      if member.stored:
        assert content[member.begin : member.end] == archive.read(name)


BAD_LEGACY = {
  "another magic number": (pickle.dumps(MAGIC + 1, 2), "none that torch.save writes"),
  "another protocol": (pickle.dumps(MAGIC, 2) + pickle.dumps(1002, 2), "protocol 1002"),
  "a tar file": (b"pickle\0\0" * 100, "not a PyTorch file"),
  "text": (b"version https://git-lfs.github.com/spec/v1\n", "not a PyTorch file"),
  "no keys": (torch_legacy(state({"a": tensor()}), {"0": (6, SIX)}, keys=3), "list of storages"),
  "a key twice": (
    torch_legacy(state({"a": tensor()}), {"0": (6, SIX)}, keys=["0", "0"]), "comes twice"),
  "a key of nothing": (
    torch_legacy(state({"a": tensor()}), {"0": (6, SIX), "1": (6, SIX)}), "belongs to no"),
  "a count that differs": (torch_legacy(state({"a": tensor()}), {"0": (7, SIX)}), "7 elements"),
  "a count of 2^63": (
    torch_legacy(state({"a": tensor()}), {"0": (2**63, SIX)}), "elements"),
  "cut short": (torch_legacy(state({"a": tensor()}), {"0": (6, SIX)})[:-1], "cut short"),
  "bytes after the end": (
    torch_legacy(state({"a": tensor()}), {"0": (6, SIX)}) + b"x", "1 bytes after"),
  "a storage that is missing": (
    torch_legacy(state({"a": tensor()}), {"0": (6, SIX)}, keys=[])[:-32], "missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LEGACY)
def test_a_damaged_file_of_the_older_format_is_refused(tmp_path, name):
  content, message = BAD_LEGACY[name]
  with pytest.raises(CheckpointError, match=message):
    open_weights(written(tmp_path, content))


def test_ordinary_pickles_of_plain_containers_are_inert():
  """What torch.save writes around tensors: every protocol, ordered dicts, numbers, text."""
  from vidgen.interop.inert_pickle import read_pickle

  tree = {"a": [1, -2, 2**40, 2.5, None, True], "b": ("x", {"c": collections.OrderedDict(d=1)})}
  for protocol in range(6):
    assert read_pickle(io.BytesIO(pickle.dumps(tree, protocol))) == tree
  assert read_pickle(io.BytesIO(pickle.dumps(SYSTEM, 2))) == SYSTEM


def test_the_sound_files_of_the_mutations_are_sound(tmp_path):
  for name, content in sound_files().items():
    path = tmp_path / name
    path.write_bytes(content)
    assert open_weights(path).read("a").tolist() == [[0, 1, 2], [3, 4, 5]]
