"""Storage that fails for a moment costs no sample; storage that goes on failing stops the run."""

import errno
import os
import threading

import pytest
from PIL import UnidentifiedImageError
from shards import image_set, record_set, tfds_set, video_set

from vidgen.errors import DataError
from vidgen.inputs import sources, storage
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.sources import open_source
from vidgen.inputs.storage import ShardFiles, patiently, patiently_apart
from vidgen.inputs.tar_index import build_index

EIO = OSError(errno.EIO, "Input/output error")
TRIES = len(storage.DELAYS) + 1


@pytest.fixture(autouse=True)
def slept(monkeypatch):
  """The pauses that were asked for; none is made."""
  pauses = []
  monkeypatch.setattr(storage.time, "sleep", pauses.append)
  return pauses


def failing(times, error=EIO, then=lambda *args: "read"):
  """A function that raises `error` the first `times` times."""
  calls = []

  def read(*args):
    calls.append(args)
    if len(calls) <= times:
      raise error
    return then(*args)

  read.calls = calls
  return read


@pytest.mark.parametrize("times", [0, 1, TRIES - 1])
def test_what_fails_for_a_moment_is_read_in_the_end(times, slept):
  assert patiently(failing(times), shard="a.tar", key="k") == "read"
  assert slept == list(storage.DELAYS[:times])


def test_the_pauses_grow_and_last_some_seconds():
  assert list(storage.DELAYS) == sorted(storage.DELAYS) and 1 < sum(storage.DELAYS) < 10


def test_what_goes_on_failing_is_a_data_error_and_no_bad_sample(slept):
  read = failing(TRIES)
  with pytest.raises(DataError, match="shard a.tar, key 'k': reading failed: Input/output error"):
    patiently(read, shard="a.tar", key="k")
  assert len(read.calls) == TRIES and slept == list(storage.DELAYS)
  with pytest.raises(DataError) as caught:
    patiently(failing(TRIES), shard="a.tar", key="k")
  assert not isinstance(caught.value, BadSample)


def test_a_file_that_is_not_there_is_not_waited_for(slept):
  with pytest.raises(DataError, match="shard a.tar: reading failed: No such file"):
    patiently(failing(TRIES, FileNotFoundError(errno.ENOENT, "No such file")), shard="a.tar")
  assert not slept


def test_a_tar_is_read_over_a_passing_error(tmp_path, monkeypatch, slept):
  source = open_source(image_set(tmp_path, count=3), subset="image")
  whole = list(source)
  monkeypatch.setattr(storage.os, "pread", failing(2, then=os.pread))
  assert list(source) == whole and len(slept) == 2


def test_lasting_trouble_with_a_tar_names_shard_and_key(tmp_path, monkeypatch):
  source = open_source(image_set(tmp_path, count=3), subset="image")
  monkeypatch.setattr(storage.os, "pread", failing(99))
  with pytest.raises(DataError, match="shard image/train/00000.tar, key '00001': ") as caught:
    source[1]
  assert not isinstance(caught.value, BadSample)


def test_a_stale_handle_is_opened_anew(tmp_path, monkeypatch):
  source = open_source(image_set(tmp_path, count=3), subset="image")
  whole, read = list(source), os.pread
  (stale,) = source._files._open.values()  # kept, so that its number is not given to the next

  def pread(number, size, offset):
    if number == stale._number:
      raise OSError(errno.ESTALE, "Stale file handle")
    return read(number, size, offset)

  monkeypatch.setattr(storage.os, "pread", pread)
  assert list(source) == whole


def test_a_descriptor_that_another_thread_reads_from_outlives_an_error(tmp_path, monkeypatch):
  """Were it closed at once, its number could be another file's by the time of that read."""
  (tmp_path / "a").write_bytes(b"right")
  (tmp_path / "b").write_bytes(b"wrong")
  files, read = ShardFiles(), os.pread
  assert files.read(tmp_path / "a", 0, 5) == b"right"
  inside, failed, found = threading.Event(), threading.Event(), []

  def pread(number, size, offset):
    if threading.current_thread() is not threading.main_thread():
      inside.set()
      failed.wait(10)
      return read(number, size, offset)
    raise EIO

  monkeypatch.setattr(storage.os, "pread", pread)
  thread = threading.Thread(target=lambda: found.append(files.read(tmp_path / "a", 0, 5)))
  thread.start()
  inside.wait(10)
  with pytest.raises(OSError, match="Input/output"):
    files.read(tmp_path / "a", 0, 5)
  other = os.open(tmp_path / "b", os.O_RDONLY)  # takes the lowest number that is free
  failed.set()
  thread.join()
  os.close(other)
  assert found == [b"right"]


def test_all_of_a_member_is_read_when_the_system_gives_it_in_pieces(tmp_path, monkeypatch):
  (tmp_path / "a").write_bytes(bytes(range(100)))
  read = os.pread
  monkeypatch.setattr(storage.os, "pread", lambda number, size, at: read(number, min(size, 7), at))
  files = ShardFiles()
  assert files.read(tmp_path / "a", 10, 50) == bytes(range(10, 60))
  assert files.read(tmp_path / "a", 90, 50) == bytes(range(90, 100))  # the file ends


def test_descriptors_are_few_and_closed(tmp_path):
  for name in "abcd":
    (tmp_path / name).write_bytes(name.encode())
  before = len(os.listdir("/proc/self/fd"))
  files = ShardFiles(limit=2)
  assert [files.read(tmp_path / name, 0, 1) for name in "abcdabcd"] == [
    b"%c" % c for c in b"abcdabcd"
  ]
  assert len(os.listdir("/proc/self/fd")) == before + 2
  del files
  assert len(os.listdir("/proc/self/fd")) == before


def test_the_index_of_a_tar_is_read_over_a_passing_error(tmp_path, monkeypatch):
  shard = image_set(tmp_path, count=3) / "image" / "train" / "00000.tar"
  index = build_index(shard)
  monkeypatch.setattr("vidgen.inputs.tar_index.os.pread", failing(3, then=os.pread))
  assert build_index(shard).digest == index.digest


def test_readers_that_say_the_same_of_both_are_told_apart_by_plain_reads(tmp_path, monkeypatch):
  """Plain reads work: damage, without a pause. They fail: the storage, with patience."""
  file = tmp_path / "a"
  file.write_bytes(b"x")
  same = {"files": [file], "shard": "a", "key": "#1"}
  broken = RuntimeError("could not read")
  assert patiently_apart(failing(1, broken), **same) == "read"  # opened anew
  with pytest.raises(BadSample, match="shard a, key '#1': reading failed: could not read"):
    patiently_apart(failing(99, broken), **same)
  monkeypatch.setattr(storage, "_read_through", failing(2))
  assert patiently_apart(failing(6, broken), **same) == "read"
  monkeypatch.setattr(storage, "_read_through", failing(99))
  with pytest.raises(DataError, match="shard a, key '#1': .*Input/output") as caught:
    patiently_apart(failing(99, broken), **same)
  assert not isinstance(caught.value, BadSample)


def test_an_oserror_of_a_decoder_is_no_trouble_of_the_storage(tmp_path):
  """Pillow's error for what is no picture is one."""
  error = UnidentifiedImageError("cannot identify image file")
  with pytest.raises(BadSample, match="cannot identify"):
    patiently_apart(failing(99, error), files=[], shard="a", key="#1")


class Reader:
  """An ArrayRecord reader that raises, as after an error of the storage, until it is reopened."""

  def __init__(self, reader):
    self.reader = reader
    self.broken = False

  def read(self, rows):
    if self.broken:
      raise RuntimeError("read() failed: Stale file handle")
    return self.reader.read(rows)

  def __getattr__(self, name):
    return getattr(self.reader, name)


def test_an_array_record_is_read_over_a_passing_error(tmp_path, monkeypatch, slept):
  readers, real = [], sources._record_reader
  monkeypatch.setattr(
    sources, "_record_reader", lambda path: readers.append(Reader(real(path))) or readers[-1]
  )
  source = open_source(record_set(tmp_path, shards=1, per_shard=3), subset="video")
  whole = list(source)
  readers[-1].broken = True  # a retry through the same reader would fail again
  assert list(source) == whole and not slept


def test_lasting_trouble_with_an_array_record_names_shard_and_record(tmp_path, monkeypatch):
  source = open_source(record_set(tmp_path, shards=1, per_shard=3), subset="video")

  def broken(path):
    raise RuntimeError("open() failed")

  monkeypatch.setattr(sources, "_record_reader", broken)
  with pytest.raises(BadSample, match="open"):  # the file can be read, so it is to blame
    source[1]
  monkeypatch.setattr(storage, "_read_through", failing(99))
  with pytest.raises(DataError, match="video/train/00000.array_record, key '#1': ") as caught:
    source[1]
  assert not isinstance(caught.value, BadSample)


def test_a_count_of_records_is_never_that_of_a_file_that_did_not_open(tmp_path, monkeypatch):
  """Its reader says 0 then, which would move all samples behind it."""
  record_set(tmp_path, shards=2, per_shard=3)
  real = sources._record_reader
  shown = failing(1, ValueError(), then=real)

  def first_missing(path):
    try:
      return shown(path)
    except ValueError:
      return real(tmp_path / "missing")

  monkeypatch.setattr(sources, "_record_reader", first_missing)
  assert len(open_source(tmp_path, subset="video")) == 6


class Broken:
  """TFDS's source after an error of the storage."""

  def __getitem__(self, index):
    raise RuntimeError("read() failed: Stale file handle")


def test_tfds_is_read_over_a_passing_error_and_told_apart_as_well(tmp_path, monkeypatch, slept):
  source = open_source(tfds_set(tmp_path, count=3), subset="video")
  whole = list(source)
  source.__dict__["_opened"] = source._open()._replace(data=Broken())
  assert list(source) == whole and not slept
  opened = source._open()._replace(data=Broken())
  monkeypatch.setattr(type(source), "_open", lambda self: opened)
  with pytest.raises(
    BadSample, match=r"shard train, key '#2': clips-train.array_record-0000.*Stale"
  ):
    source[2]
  monkeypatch.setattr(storage, "_read_through", failing(99))
  with pytest.raises(DataError, match="clips-train.array_record-00000-of-00001, key '#2': ") as no:
    source[2]
  assert not isinstance(no.value, BadSample)


def test_damage_to_a_tar_is_still_a_bad_sample(tmp_path):
  source = open_source(video_set(tmp_path, shards=1, per_shard=2), subset="video")
  os.truncate(tmp_path / "video" / "train" / "00000.tar", 3000)
  with pytest.raises(BadSample, match="bytes of .mp4"):
    source[1]
