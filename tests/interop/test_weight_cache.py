"""Converted weights are kept by what they were made of, and never believed unverified."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from fixtures.random_weights import draw

from vidgen.errors import CheckpointError
from vidgen.interop import weight_cache
from vidgen.interop.layout import Layout, Source, load_params
from vidgen.interop.tensors import MemoryWeights
from vidgen.interop.weight_cache import VARIABLE, cached_params, remembering
from vidgen.interop.weight_files import open_weights

LAYOUT = Layout({"w": Source(("l.0", "l.1"), "o i -> i o"), "b": Source(("b",))})
LIKE = {
  "w": jax.ShapeDtypeStruct((2, 3, 4), "float32"),
  "b": jax.ShapeDtypeStruct((), "float32"),
}
ARRAYS = {"l.0": draw("0", (4, 3)), "l.1": draw("1", (4, 3)), "b": np.array(2.5, np.float32)}


class Counted(MemoryWeights):
  """Weights that count how often an array of them is read."""

  reads = 0

  def read(self, name):
    self.reads += 1
    return super().read(name)


def load(weights, cache, **options):
  return cached_params(weights, options.pop("layout", LAYOUT), like=LIKE, cache=cache, **options)


def assert_equal(a, b):
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert one.dtype == other.dtype and np.array_equal(one, other)


def entries(folder):
  return sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_second_time_nothing_of_the_source_is_read_and_the_bits_are_the_same(tmp_path, dtype):
  plain = load_params(MemoryWeights(ARRAYS), LAYOUT, like=LIKE, dtype=dtype)
  first, second = Counted(ARRAYS), Counted(ARRAYS)
  assert_equal(load(first, tmp_path, dtype=dtype), plain)
  assert_equal(load(second, tmp_path, dtype=dtype), plain)
  assert first.reads and not second.reads
  assert len(entries(tmp_path)) == 1 and not list(tmp_path.glob(".*"))


def test_other_content_layout_or_dtype_is_another_entry(tmp_path):
  load(MemoryWeights(ARRAYS), tmp_path)
  load(MemoryWeights({**ARRAYS, "b": np.array(3, np.float32)}), tmp_path)
  load(MemoryWeights(ARRAYS), tmp_path, dtype="bfloat16")
  swapped = Layout({**LAYOUT.sources, "w": Source(("l.1", "l.0"), "o i -> i o")})
  other = load(MemoryWeights(ARRAYS), tmp_path, layout=swapped)
  assert np.array_equal(other["w"][0], ARRAYS["l.1"].T)
  assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["a bit", "cut", "the note", "no note", "empty"])
def test_a_damaged_entry_is_made_again_and_stderr_says_so(tmp_path, capsys, damage):
  plain = load(MemoryWeights(ARRAYS), tmp_path)
  (entry,) = entries(tmp_path)
  sound = entry.read_bytes()
  note = entry.with_suffix(".json")
  if damage == "a bit":
    entry.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
  elif damage == "cut":
    entry.write_bytes(sound[:-5])
  elif damage == "empty":
    entry.write_bytes(b"")
  elif damage == "the note":
    note.write_text('{"sha256": "0"}')
  else:
    note.unlink()
  assert_equal(load(MemoryWeights(ARRAYS), tmp_path), plain)
  assert entry.read_bytes() == sound
  said = capsys.readouterr().err
  assert str(entry) in said and "made again" in said if damage != "no note" else not said


def test_wrong_weights_are_refused_and_leave_no_entry(tmp_path):
  with pytest.raises(CheckpointError, match=r"\+ b \[\]"):
    load(MemoryWeights({k: v for k, v in ARRAYS.items() if k != "b"}), tmp_path)
  with pytest.raises(CheckpointError, match="not finite: w"):
    load(MemoryWeights({**ARRAYS, "l.1": np.full((4, 3), np.nan, np.float32)}), tmp_path)
  assert not entries(tmp_path)


def test_a_cache_that_cannot_be_written_costs_a_line_not_the_weights(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  plain = load_params(MemoryWeights(ARRAYS), LAYOUT, like=LIKE)
  assert_equal(load(MemoryWeights(ARRAYS), tmp_path / "file"), plain)
  assert "not cached" in capsys.readouterr().err


def test_nothing_is_kept_unless_a_folder_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  monkeypatch.delenv(VARIABLE, raising=False)
  load(MemoryWeights(ARRAYS), None)
  assert not list(tmp_path.iterdir())
  monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
  load(MemoryWeights(ARRAYS), None)
  assert len(entries(tmp_path / "named")) == 1


def test_a_digest_is_remembered_until_the_file_changes_even_if_its_time_is_set_back(
  tmp_path, monkeypatch
):
  path = tmp_path / "w.safetensors"
  path.write_bytes(safetensors.numpy.save({"a": np.zeros(2, np.float32)}))
  read = []
  real = weight_cache.file_sha256
  monkeypatch.setattr(weight_cache, "file_sha256", lambda p: read.append(p) or real(p))
  digest = remembering(tmp_path / "cache")
  first = open_weights(path, file_digest=digest).digest
  assert open_weights(path, file_digest=digest).digest == first == real(path) and len(read) == 1
  times = path.stat()
  path.write_bytes(safetensors.numpy.save({"a": np.ones(2, np.float32)}))
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  assert open_weights(path, file_digest=digest).digest == real(path) != first


RUN = """
import sys
import jax, numpy as np
from vidgen.interop.layout import Layout, Source
from vidgen.interop.tensors import MemoryWeights
from vidgen.interop.weight_cache import cached_params
arrays = {"a": np.arange(1 << 20, dtype=np.float32)}
print("ready", flush=True)
sys.stdin.readline()
params = cached_params(MemoryWeights(arrays), Layout({"x": Source(("a",))}), cache=sys.argv[1],
                       like={"x": jax.ShapeDtypeStruct((1 << 20,), "float32")})
assert np.array_equal(params["x"], arrays["a"])
"""


def test_two_processes_may_make_the_same_entry_at_once(tmp_path):
  runs = [
    subprocess.Popen(
      [sys.executable, "-c", RUN, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for _ in range(2)
  ]
  for run in runs:
    assert run.stdout.readline() == b"ready\n"
  for run in runs:
    run.stdin.write(b"\n")
    run.stdin.flush()
  for run in runs:
    run.communicate(timeout=120)
    assert run.returncode == 0
  assert len(entries(tmp_path)) == 1 and not list(tmp_path.glob(".*"))
