"""One array a sample: what is written comes back, and damage anywhere is found."""

import json
import multiprocessing
import random

import numpy as np
import pytest

from vidgen.errors import DataError
from vidgen.inputs.array_shards import ArrayShard, ArrayWriter, file_bytes

ARRAYS = {0: np.arange(6.0).reshape(3, 2), 2: np.full((1, 2), -0.5), 3: np.zeros((0, 2))}
ABOUT = {"what": "a test"}


def write(path, *, dtype="bfloat16"):
  writer = ArrayWriter(path, samples=6, dtype=dtype, ndim=2)
  for sample in (3, 0, 2):  # in any order
    writer.add([sample], ARRAYS[sample], source=str(sample).encode())
  writer.add([4, 5], np.full((2, 2), 7), source=b"both")
  writer.close(ABOUT)
  return path


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_written_comes_back(dtype, tmp_path):
  shard = ArrayShard(write(tmp_path / "a.arrays", dtype=dtype))
  assert len(shard) == 6 and shard.about["what"] == "a test"
  for sample, array in ARRAYS.items():
    found = shard.read(sample, source=str(sample).encode())
    assert found.dtype.name == dtype and found.shape == array.shape
    np.testing.assert_array_equal(found.astype(np.float64), array)
  assert not shard.has(1) and shard.has(3)


def test_samples_of_the_same_source_share_their_bytes(tmp_path):
  shard = ArrayShard(write(tmp_path / "a.arrays"))
  one, other = (shard.read(i, source=b"both") for i in (4, 5))
  np.testing.assert_array_equal(one, other)
  payload = 2 * (6 + 2 + 0 + 4)
  assert shard.path.stat().st_size == file_bytes(
    ABOUT, payload=payload, samples=6, dtype="bfloat16", ndim=2
  )


def test_latents_fit_too(tmp_path):
  latents = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
  writer = ArrayWriter(tmp_path / "l.arrays", samples=1, dtype="float32", ndim=4)
  writer.add([0], latents, source=b"clip")
  writer.close({})
  np.testing.assert_array_equal(ArrayShard(tmp_path / "l.arrays").read(0, source=b"clip"), latents)
  with pytest.raises(ValueError, match="4 axes are due"):
    ArrayWriter(tmp_path / "x", samples=1, dtype="float32", ndim=4).add([0], latents[0], source=b"")


def test_another_source_or_none_is_told(tmp_path):
  shard = ArrayShard(write(tmp_path / "a.arrays"), remedy="do it again")
  with pytest.raises(DataError, match=r"a\.arrays: sample 0 was made from something else.*again"):
    shard.read(0, source=b"1")
  with pytest.raises(DataError, match="has nothing for sample 1"):
    shard.read(1, source=b"1")


def test_a_file_that_is_not_one_is_refused(tmp_path):
  with pytest.raises(DataError, match=r"none\.arrays: missing"):
    ArrayShard(tmp_path / "none.arrays")
  (tmp_path / "x.arrays").write_bytes(b"\x80\x04cos\nsystem\n." * 20)
  with pytest.raises(DataError, match="not a file of arrays"):
    ArrayShard(tmp_path / "x.arrays")


def test_any_flipped_bit_and_any_cut_is_found(tmp_path):
  content = write(tmp_path / "a.arrays").read_bytes()
  rng = random.Random(0)
  places = [rng.randrange(len(content)) for _ in range(120)]
  damaged = [content[:i] for i in places]
  damaged += [content[:i] + bytes([content[i] ^ 1 << rng.randrange(8)]) + content[i + 1 :]
              for i in places]  # fmt: skip
  for one in damaged:
    path = tmp_path / "b.arrays"
    path.write_bytes(one)
    with pytest.raises(DataError, match=r"b\.arrays"):
      shard = ArrayShard(path)
      for sample in ARRAYS:
        shard.read(sample, source=str(sample).encode())
      shard.read(4, source=b"both")


def test_an_index_that_points_outside_is_refused_however_it_is_signed(tmp_path):
  """Whoever forges the hash, too, gets no read outside of the file."""
  import hashlib

  from vidgen.inputs import array_shards as module

  content = write(tmp_path / "a.arrays").read_bytes()
  tail = module._TAIL
  index_size, about_size, _ = tail.unpack(content[-tail.size :])
  start = len(content) - tail.size - index_size - about_size
  for shape in ((2**31 - 1, 2**31 - 1), (-1, 2), (1000, 2)):
    index = np.frombuffer(content[start : start + index_size], module._row(2)).copy()
    index["shape"][0] = shape
    table = index.tobytes() + content[start + index_size : -tail.size]
    sealed = tail.pack(index_size, about_size, hashlib.sha256(table).digest())
    (tmp_path / "b.arrays").write_bytes(content[:start] + table + sealed)
    with pytest.raises(DataError, match="points outside"):
      ArrayShard(tmp_path / "b.arrays")
  about = json.dumps({"dtype": "object", "ndim": 2, "samples": 6}).encode()
  table = content[start : start + index_size] + about
  sealed = tail.pack(index_size, len(about), hashlib.sha256(table).digest())
  (tmp_path / "b.arrays").write_bytes(content[:start] + table + sealed)
  with pytest.raises(DataError, match="damaged: KeyError: 'object'"):
    ArrayShard(tmp_path / "b.arrays")


def _read(shard, queue):
  queue.put(shard.read(0, source=b"0").astype(np.float32).tolist())


def test_a_shard_is_sent_to_another_process(tmp_path):
  context = multiprocessing.get_context("spawn")
  queue = context.Queue()
  process = context.Process(target=_read, args=(ArrayShard(write(tmp_path / "a.arrays")), queue))
  process.start()
  assert queue.get(timeout=60) == ARRAYS[0].tolist()
  process.join()
