"""The mean of runs: the same whatever their order, the runs themselves if they are equal, a run."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from trained_run import changed, experiment, params, write_run

from vidgen.cli import main
from vidgen.config import plain
from vidgen.errors import CheckpointError
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.trained import load_trained


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Four runs of one model; large numbers in the last two cancel, and with them what was added."""
  folder = tmp_path_factory.mktemp("runs")
  large, small = (jax.tree.map(lambda x, f=f: f * x, params(2)) for f in (1e17, -1e17))
  trees = {"a": (5, params(0)), "b": (7, params(1)), "c": (6, large), "d": (6, small)}
  made = [write_run(folder / name, step=step, ema=ema) for name, (step, ema) in trees.items()]
  return [str(path) for path in made]


def average(runs, out, *more):
  return main(["average", *runs, "--out", str(out), *more])


def held(out):
  return Checkpoints(out / "checkpoints").restore_params("ema")


def digest(out):
  checkpoints = Checkpoints(out / "checkpoints")
  return checkpoints.digests()["ema"]


def test_it_is_the_mean_in_any_order_to_the_bit(runs, tmp_path):
  a, b, c, d = runs
  found = set()
  for name, order in (("acd", [a, c, d]), ("cda", [c, d, a]), ("dac", [d, a, c])):
    assert average(order, tmp_path / name) == 0
    found.add(digest(tmp_path / name))
  assert len(found) == 1
  assert average([a, b], tmp_path / "ab", "--json", str(tmp_path / "told.json")) == 0
  trees = [held(tmp_path / "ab"), *(load_trained(run).params for run in (a, b))]
  for mean, *parts in zip(*map(jax.tree.leaves, trees), strict=True):
    exact = np.mean([np.asarray(p, np.float64) for p in parts], axis=0)
    np.testing.assert_array_equal(mean, exact.astype(np.float32))
  told = json.loads((tmp_path / "told.json").read_text())
  assert (told["step"], [r["step"] for r in told["runs"]]) == (7, [5, 7])


@pytest.mark.parametrize("count", [1, 3])
def test_the_mean_of_equal_runs_is_the_run(runs, tmp_path, count):
  assert average([runs[0]] * count, tmp_path / "out") == 0
  assert digest(tmp_path / "out") == load_trained(runs[0]).params_digest


def test_steps_and_weights_are_those_that_are_named(runs, tmp_path):
  assert average([f"{runs[0]}@5"], tmp_path / "one", "--weights", "params") == 0
  jax.tree.map(np.testing.assert_array_equal, held(tmp_path / "one"), params(1))
  assert average([f"{runs[0]}@6"], tmp_path / "two") == 4
  assert not (tmp_path / "two").exists()


def test_the_mean_is_sampled_exported_and_inspected_as_a_run(runs, tmp_path, capsys):
  out = tmp_path / "mean"
  assert average(runs[:2], out) == 0
  trained = load_trained(out)
  assert (trained.step, trained.experiment) == (7, experiment())
  (tmp_path / "p.txt").write_text("a red circle\n")
  common = ["--workdir", str(out), "--out"]
  prompts = ["--prompts", str(tmp_path / "p.txt")]
  assert main(["sample", *common, str(tmp_path / "samples"), *prompts]) == 0
  assert main(["export", *common, str(tmp_path / "e"), "--to", "safetensors"]) == 0
  capsys.readouterr()
  assert main(["inspect", "--workdir", str(out)]) == 0
  assert "network/patch_in/kernel" in capsys.readouterr().out
  with pytest.raises(CheckpointError, match="holds no 'params'"):
    load_trained(out, weights="params")


def test_other_models_and_occupied_folders_are_refused(runs, tmp_path, capsys):
  other = dataclasses.replace(changed(width=16), name="other")
  checkpoints = Checkpoints(tmp_path / "other" / "checkpoints")
  small = jax.tree.map(lambda x: x, params(0))
  small["network"]["patch_in"]["bias"] = np.zeros(16, np.float32)
  checkpoints.save(1, {"ema": small, "step": 1}, {}, plain(other))
  checkpoints.close()
  assert average([runs[0], str(tmp_path / "other")], tmp_path / "out") == 4
  error = capsys.readouterr().err
  assert "stage.fields.width: 32 -> 16" in error
  assert "network/patch_in/bias: [32] -> [16]" in error and not (tmp_path / "out").exists()
  assert average([runs[0]], runs[1]) == 2
  assert "holds checkpoints already" in capsys.readouterr().err
  assert average([str(tmp_path)], tmp_path / "out") == 4


def test_hyperparameters_that_the_mean_does_not_hang_on_may_differ(runs, tmp_path, capsys):
  for name, fields in (("free", {"remat": "full"}), ("told", {"time_scale": 2.0})):
    checkpoints = Checkpoints(tmp_path / name / "checkpoints")
    checkpoints.save(1, {"ema": params(1), "step": 1}, {}, plain(changed(**fields)))
    checkpoints.close()
  assert average([runs[0], str(tmp_path / "free")], tmp_path / "x") == 0
  both = [runs[0], str(tmp_path / "told")]
  assert average(both, tmp_path / "y") == 4
  assert "stage.fields.time_scale: 1.0 -> 2.0" in capsys.readouterr().err
  assert average(both, tmp_path / "y", "--allow-change", "stage.fields.time_scale") == 0


def test_a_damaged_run_is_refused(tmp_path, capsys):
  write_run(tmp_path / "a")
  files = (p for p in (tmp_path / "a").rglob("ema/**/*") if p.is_file())
  largest = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  assert average([str(tmp_path / "a")], tmp_path / "out") == 4
  assert "file ema/" in capsys.readouterr().err and not (tmp_path / "out").exists()
