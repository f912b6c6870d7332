"""`vidgen cascade`: a chain of runs from prompts to clips, checked before anything is made."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cascade_run
import numpy as np
import pytest
from cascade_run import BASE, SSR, TSR

from vidgen.cli import main
from vidgen.evals.samples import read_samples
from vidgen.inputs.storage import file_sha256

TESTS = Path(cascade_run.__file__).parent


@pytest.fixture(autouse=True)
def known(monkeypatch):
  cascade_run.register(monkeypatch)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """base, tsr and ssr, which fit each other, and others, which do not."""
  folder = tmp_path_factory.mktemp("runs")
  with pytest.MonkeyPatch.context() as patch:
    cascade_run.register(patch)
    cascade_run.write_run(folder / "base", shape=BASE, fps=3.0, steps=(4, 5))
    cascade_run.write_run(folder / "tsr", shape=TSR, low=BASE, fps=6.0)
    mesh = {"data": 1, "fsdp": 1, "context": 8, "tensor": 1}  # a batch of one is not split
    cascade_run.write_run(folder / "ssr", shape=SSR, low=TSR, fps=6.0, mesh=mesh)
    cascade_run.write_run(folder / "fast", shape=TSR, low=BASE, fps=8.0)
    t5 = {"t5": {"length": 8, "folder": str(folder / "gone")}}
    cascade_run.write_run(folder / "embedded", shape=TSR, low=BASE, fps=6.0, encoders=t5)
  (folder / "prompts.txt").write_text("a red circle\nblue\na green square\nfour\n")
  return folder


def chain(runs, names, out, *more):
  places = [runs / name for name in names.split()]
  arguments = ["cascade", "--runs", *places, "--prompts", runs / "prompts.txt", "--out", out, *more]
  return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
  out = tmp_path_factory.mktemp("made")
  with pytest.MonkeyPatch.context() as patch:
    cascade_run.register(patch)
    options = ("--seed", 3, "--count", 3, "--steps", 2, 3, 4, "--json", out / "summary.json")
    assert chain(runs, "base tsr ssr", out, *options) == 0
  return out


def contents(out):
  return {
    path.relative_to(out).as_posix(): file_sha256(path)
    for path in out.rglob("*")
    if path.is_file() and path.parent != out
  }


def test_every_stage_leaves_a_folder_of_samples(runs, made):
  """Of the shapes and rates of its config; the summary says what made them."""
  summary = json.loads((made / "summary.json").read_text())
  assert (summary["count"], summary["seed"], summary["order"]) == (3, 3, "batches")
  expected = [("0_base", BASE, 3.0, 2), ("1_tsr", TSR, 6.0, 3), ("2_ssr", SSR, 6.0, 4)]
  for stage, (name, shape, fps, steps) in zip(summary["stages"], expected, strict=True):
    found = read_samples(made / name)
    assert stage["out"] == str(made / name) and stage["settings"]["steps"] == steps
    assert (stage["frames"], stage["height"], stage["width"]) == shape and stage["fps"] == fps
    for record, video in zip(found.records, found.videos(), strict=True):
      assert video.frames is not None and video.frames.shape == (*shape, 3) and record.fps == fps
      assert record.settings.steps == steps and record.params_digest == stage["params_digest"]
      assert np.load(made / name / "latents" / f"{record.index:05d}.npy").shape == (*shape, 3)
  assert [r.prompt for r in found.records] == ["a red circle", "blue", "a green square"]


def test_the_first_stage_alone_makes_the_same(runs, made, tmp_path):
  arguments = ["sample", "--workdir", runs / "base", "--prompts", runs / "prompts.txt"]
  arguments += ["--out", tmp_path, "--seed", 3, "--count", 3, "--steps", 2, "--batch-size", 1]
  assert main([str(argument) for argument in arguments]) == 0
  for i in range(3):
    assert file_sha256(tmp_path / f"{i:05}.mp4") == file_sha256(made / "0_base" / f"{i:05}.mp4")


def test_stage_by_stage_gives_the_same_bytes(runs, made, tmp_path, capsys):
  options = ("--seed", 3, "--count", 3, "--steps", 2, 3, 4, "--stage-by-stage")
  assert chain(runs, "base tsr ssr", tmp_path, *options) == 0
  assert contents(tmp_path) == contents(made)
  assert "3 samples of 32 x 6 x 10 at 6 fps in" in capsys.readouterr().out
  # And again, with a prompt more: what is there is kept.
  assert chain(runs, "base tsr ssr", tmp_path, "--seed", 3, "--steps", 2, 3, 4) == 0
  assert capsys.readouterr().out.count("; 3 had their latents already") == 3


def test_a_step_can_be_chosen_of_each_run(runs, made, tmp_path):
  assert chain(runs, "base@4 tsr", tmp_path, "--count", 1, "--seed", 3) == 0
  (record,) = read_samples(tmp_path / "0_base").records
  assert record.step == 4
  assert record.params_digest != read_samples(made / "0_base").records[0].params_digest


@pytest.mark.parametrize(
  ("names", "options", "code", "message"),
  [
    ("base ssr", (), 2, "base makes clips of 16 x 3 x 5, ssr wants 32 x 3 x 5"),
    ("base fast", (), 2, "base makes 16 frames at 3 fps, fast 32 at 8"),
    ("tsr ssr", (), 2, "tsr: makes more of another's clips, and cannot be the first"),
    ("base base", (), 2, "base: makes clips from text alone"),
    ("base embedded", (), 2, "gone: no such file or folder"),
    ("base nowhere", (), 4, "nowhere: holds no checkpoints"),
    ("base tsr@9", (), 4, "9"),
    ("base tsr ssr", ("--steps", 1, 2), 2, "--steps: 2 values for 3 runs"),
    ("base tsr", ("--guidance", -1), 2, "guidance_scale must be 0 or more"),
    ("base tsr", ("--encoder", "clip=x"), 2, "text encoder 'clip': the runs have none"),
    ("base tsr", ("--seed", -1), 2, "seed must lie in"),
    ("base tsr", ("--count", 5), 2, "holds 4 prompts"),
  ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_made(
  runs, tmp_path, capsys, names, options, code, message
):
  assert chain(runs, names, tmp_path / "out", *options) == code
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_a_stage_that_is_given_clips_is_refused_by_sample(runs, tmp_path, capsys):
  arguments = ["sample", "--workdir", runs / "tsr", "--prompts", runs / "prompts.txt"]
  assert main([str(a) for a in [*arguments, "--out", tmp_path / "out"]]) == 2
  assert "`vidgen cascade`" in capsys.readouterr().err


def test_each_folder_is_one_that_eval_reads(runs, made, tmp_path):
  """Also of clips of 3 x 5: their frames are compared with themselves."""
  for name in ("0_base", "2_ssr"):
    arguments = ["eval", "--samples", made / name, "--reference", made / name, "--metrics", "psnr"]
    out = tmp_path / f"{name}.json"
    assert main([str(argument) for argument in [*arguments, "--json", out]]) == 0
    assert json.loads(out.read_text())["scores"]["psnr"]["protocol"]["count"] == 3


DIE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import cascade_run
from vidgen.cli import main
from vidgen.evals import sample_files
from vidgen.systems import STAGES

STAGES[cascade_run.NAME] = ("cascade_run", "CascadeConfig", "CascadeStage")
written, write = [], sample_files.write_whole

def write_or_die(path, content):
  written.append(path)
  if len(written) == 17:  # the fifth clip's latents: the second stage's, of the second prompt
    path.with_name(f".{path.name}.1.partial").write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
  write(path, content)

sample_files.write_whole = write_or_die
sys.exit(main(sys.argv[2:]))
"""


def test_a_cascade_that_is_killed_goes_on_where_it_was(runs, made, tmp_path, capsys):
  options = ("--seed", "3", "--count", "3", "--steps", "2", "3", "4")
  places = [str(runs / name) for name in ("base", "tsr", "ssr")]
  command = ["cascade", "--runs", *places, "--prompts", str(runs / "prompts.txt")]
  command = [sys.executable, "-c", DIE, str(TESTS), *command, "--out", str(tmp_path), *options]
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  done = subprocess.run(command, env=environment, capture_output=True, timeout=500)
  assert done.returncode == -signal.SIGKILL, done.stderr
  left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
  capsys.readouterr()
  assert chain(runs, "base tsr ssr", tmp_path, *options) == 0
  assert capsys.readouterr().out.count("had their latents already") == len({p[0] for p in left})
  assert contents(tmp_path) == contents(made)
