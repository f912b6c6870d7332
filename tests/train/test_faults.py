"""Faults of a stored checkpoint: every one is refused, with the file, the array and a way out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from saved import CONFIG, assert_same_bits, like, save, state

from vidgen.cli import main
from vidgen.errors import CheckpointError
from vidgen.train import manifest as mf
from vidgen.train.checkpoint import Checkpoints

STEP = "00000002"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """A run with steps 1 and 2."""
  directory = tmp_path_factory.mktemp("run") / "checkpoints"
  save(directory, 1, 2)
  return directory


@pytest.fixture
def run(good, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(good, tmp_path / "checkpoints")


def files(directory: Path) -> list[Path]:
  return sorted(p for p in (directory / STEP).rglob("*") if p.is_file())


def refusal(run: Path, *, step: int | None = None) -> str:
  with pytest.raises(CheckpointError) as error:
    Checkpoints(run).restore(step, like(state(2)))
  assert error.value.exit_code == 4
  return str(error.value)


def flip(path: Path, seed: int) -> None:
  contents = bytearray(path.read_bytes())
  rng = np.random.default_rng(seed)
  contents[rng.integers(len(contents))] ^= 1 << int(rng.integers(8))
  path.write_bytes(contents)


def test_one_flipped_bit_in_any_file_is_refused(run):
  paths = files(run)
  assert len(paths) > 30
  for seed, path in enumerate(paths):
    contents = path.read_bytes()
    flip(path, seed)
    message = refusal(run)
    assert path.relative_to(run / STEP).as_posix() in message
    assert "step 1 is good: read it with --step 1" in message
    path.write_bytes(contents)
  assert_same_bits(Checkpoints(run).restore(None, like(state(2))).state, state(2))


def test_the_array_in_a_damaged_file_is_named(run):
  """The largest file of an item holds its only large array, here as in any model."""
  for item, array in {"params": "block/kernel", "opt_state": "1/0/mu/block/kernel"}.items():
    data = max((p for p in files(run) if item in p.parts), key=lambda p: p.stat().st_size)
    contents = bytearray(data.read_bytes())
    contents[len(contents) // 2] ^= 4
    pristine = data.read_bytes()
    data.write_bytes(contents)
    message = refusal(run)
    assert f"{item}/{array}" in message and data.name in message
    data.write_bytes(pristine)


def test_a_flipped_bit_that_orbax_reads_without_a_word_is_why_there_is_a_manifest(run):
  import vidgen.train.items as it

  directory = run / STEP / "params"
  wanted = {"block/kernel": like(state(2)).params["block"]["kernel"]}
  pristine = it.read_arrays(directory, wanted)["block/kernel"]
  data = max(directory.rglob("d/*"), key=lambda p: p.stat().st_size)
  contents = data.read_bytes()
  silent = 0
  for position in range(len(contents) // 2, len(contents) // 2 + 16):
    data.write_bytes(
      contents[:position] + bytes([contents[position] ^ 1]) + contents[position + 1 :]
    )
    try:
      silent += it.read_arrays(directory, wanted)["block/kernel"].tobytes() != pristine.tobytes()
    except Exception:
      continue
  assert silent > 0


@pytest.mark.parametrize("size", [0.0, 0.5, 1.1])
def test_a_file_of_another_size_is_refused(run, size):
  for path in files(run)[::4]:
    contents = path.read_bytes()
    path.write_bytes((contents * 2)[: int(len(contents) * size) + (size > 1)])
    assert path.relative_to(run / STEP).as_posix() in refusal(run)
    path.write_bytes(contents)


def test_a_missing_file_is_refused_the_manifest_included(run):
  for path in files(run):
    contents = path.read_bytes()
    path.unlink()
    message = refusal(run)
    assert path.relative_to(run / STEP).as_posix() in message and "missing" in message
    path.write_bytes(contents)


def test_an_extra_or_renamed_file_is_refused(run):
  extra = run / STEP / "params" / "extra"
  extra.write_text("x")
  assert "params/extra (not in the manifest)" in refusal(run)
  extra.unlink()
  config = run / STEP / "config" / "config.json"
  config.rename(config.with_name("config.yaml"))
  message = refusal(run)
  assert "config/config.json (missing)" in message and "config/config.yaml" in message


def test_a_link_in_place_of_a_file_is_refused(run, tmp_path):
  path = run / STEP / "config" / "config.json"
  shutil.copy(path, tmp_path / "config.json")
  path.unlink()
  path.symlink_to(tmp_path / "config.json")
  assert "config/config.json is not a regular file" in refusal(run)


def test_an_empty_renamed_or_swapped_checkpoint_is_refused(run):
  shutil.copytree(run / STEP, run / "00000003")
  assert "is of step 2" in refusal(run) and "step 2 is good" in refusal(run)
  shutil.rmtree(run / "00000003")
  (run / "00000003").mkdir()
  assert "manifest.json: missing" in refusal(run)
  assert_same_bits(Checkpoints(run).restore(2, like(state(2))).state, state(2))


def test_a_manifest_that_was_edited_is_refused(run):
  path = run / STEP / mf.FILE
  text = path.read_text()
  for damaged in (
    text.replace('"step": 2', '"step": 3'),
    text.replace("\n", "\n "),
    text + "\n",
    "[" * 100_000,
    "{}",
    "",
    "null",
    json.dumps({"manifest": {}, "sha256": mf._sha256("{}")}, indent=1),
  ):
    assert damaged != text
    path.write_text(damaged)
    assert mf.FILE in refusal(run)
  path.write_bytes(b"\xff\xfe")
  assert mf.FILE in refusal(run)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "params/../../outside", "a\0b"])
def test_a_name_in_a_manifest_is_never_opened_as_a_path(run, tmp_path, monkeypatch, name):
  """A well-formed manifest, with a right hash of its own, that names a file elsewhere."""
  outside = tmp_path / "outside"
  outside.write_text("secret")
  manifest = mf.read(run / STEP)
  record = mf.FileRecord(name, 6, mf._sha256("secret"))
  mf.write(run / STEP, mf.dataclasses.replace(manifest, files=(*manifest.files, record)))
  opened = []
  monkeypatch.setattr(mf, "_record_file", lambda *a: opened.append(a) or mf.FileRecord("", 0, ""))
  with pytest.raises(CheckpointError, match="missing"):
    Checkpoints(run).restore(2, like(state(2)))
  assert not [a for a in opened if a[1] == name]


def test_arrays_that_are_not_those_of_the_manifest_are_refused(run):
  """Files and manifest agree, and yet the arrays are others: a whole item of another step."""
  shutil.rmtree(run / STEP / "params")
  shutil.copytree(run / "00000001" / "params", run / STEP / "params")
  manifest = mf.read(run / STEP)
  records = tuple(mf.record_files(run / STEP))
  mf.write(run / STEP, mf.dataclasses.replace(manifest, files=records))
  assert "array params/block/bias, params/block/kernel" in refusal(run)
  with pytest.raises(CheckpointError, match="array params/"):
    Checkpoints(run).verify(2)


def test_damage_anywhere_is_refused_to_samplers_and_by_inspect(run, capsys):
  path = next(p for p in files(run) if "opt_state" in p.parts)
  flip(path, 0)
  for act in (Checkpoints(run).restore_params, Checkpoints(run).verify):
    with pytest.raises(CheckpointError, match=path.name):
      act()
  assert main(["inspect", "--workdir", str(run.parent)]) == 4
  assert path.name in capsys.readouterr().err


def test_the_newest_good_step_is_offered_and_said_when_there_is_none(run):
  save(run, 3)
  flip(run / STEP / "config" / "config.json", 0)
  flip(run / "00000003" / "config" / "config.json", 0)
  with pytest.raises(CheckpointError, match="config.json.*step 1 is good"):
    Checkpoints(run).restore(None, like(state(3)))
  with pytest.raises(CheckpointError, match="config.json.*step 1 is good"):
    Checkpoints(run).read_config()
  flip(run / "00000001" / "manifest.json", 0)
  assert "there is no older good step" in refusal(run)


def test_a_disk_that_fills_up_fails_the_save_and_leaves_the_older_ones(tmp_path):
  """A limit on file sizes stands for a full disk; the save itself, then the manifest hits it."""
  save(tmp_path, 1)
  program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from saved import CONFIG, assert_same_bits, like, state
from vidgen.errors import CheckpointError
from vidgen.train.checkpoint import Checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints({str(tmp_path)!r}, keep=1)
checkpoints.restore(None, like(state(1)))
for limit in (100, 4000, 10_000):  # the largest array has 8 kB, the manifest 12
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
  try:
    checkpoints.save(2, state(2), {{}}, CONFIG)
    checkpoints.wait()
    sys.exit(f"no error at {{limit}}")
  except CheckpointError as error:
    assert "saving step 2" in str(error) and "the newest complete step is 1" in str(error), error
  assert checkpoints.steps() == [1]
checkpoints.save(2, state(2), {{}}, CONFIG)  # fails in the background
try:
  checkpoints.save(3, state(3), {{}}, CONFIG)
  sys.exit("the next save does not tell")
except CheckpointError:
  pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert_same_bits(checkpoints.restore(None, like(state(1))).state, state(1))
checkpoints.save(3, state(3), {{}}, CONFIG)
checkpoints.close()
assert checkpoints.steps() == [3], checkpoints.steps()
"""
  done = subprocess.run(  # output through pipes: the limit holds for files
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert [p.name for p in tmp_path.iterdir()] == ["00000003"]


def test_a_directory_that_cannot_be_made_is_refused_before_the_first_step(tmp_path):
  (tmp_path / "checkpoints").write_text("a file")
  with pytest.raises(CheckpointError, match="cannot be written"):
    Checkpoints(tmp_path / "checkpoints").prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused_before_the_first_step(run):
  run.chmod(0o500)
  with pytest.raises(CheckpointError, match="cannot be written"):
    Checkpoints(run).prepare()
  run.chmod(0o700)


def test_an_error_in_the_background_comes_out_once_and_the_next_save_works(run, monkeypatch):
  checkpoints = Checkpoints(run, keep=1)
  with monkeypatch.context() as patched:
    patched.setattr(mf, "write", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
    checkpoints.save(3, state(3), {}, CONFIG)
    with pytest.raises(CheckpointError, match="saving step 3 .* I/O error; .* step is 2"):
      checkpoints.wait()
  checkpoints.wait()
  assert checkpoints.steps() == [1, 2]
  checkpoints.save(3, state(3), {}, CONFIG)
  checkpoints.close()
  assert checkpoints.steps() == [3]
