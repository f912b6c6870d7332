"""`vidgen inspect`: what it says is recomputed from what is on disk."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
from trained_run import experiment, write_run

from vidgen.cli import main
from vidgen.config import digest, plain
from vidgen.train import manifest as mf

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "configs/movie_gen/t2v_256.py")
FULL = str(ROOT / "configs/movie_gen/t2v_768.py")


def inspect(*arguments, out: Path):
  assert main(["inspect", *map(str, arguments), "--json", str(out)]) == 0
  return json.loads(out.read_text())


def test_a_config_that_was_never_trained_is_counted_without_making_an_array(tmp_path, capsys):
  """Movie Gen's 30B, in the layout of the spec; float32 parameters alone would take 117 GB."""
  begin = time.process_time()
  report = inspect("--config", f"{FULL}:30b", out=tmp_path / "30b.json")
  assert time.process_time() - begin < 20
  assert report["parameters"]["total"] == 29_303_568_384
  assert report["step"] is None and report["digests"] is None
  assert "29,303,568,384" in capsys.readouterr().out
  query = next(
    row for row in report["parameters"]["arrays"] if row["name"].endswith("self_attention/query")
  )
  assert query["shape"] == [48, 6144, 48, 128] and query["count"] == 48 * 6144 * 48 * 128
  assert query["axes"] == ["layers", "embed", "heads", "kv"]


def test_an_override_changes_config_and_count(tmp_path):
  tiny = inspect("--config", f"{RECIPE}:tiny", out=tmp_path / "a.json")
  deeper = inspect(
    "--config", f"{RECIPE}:tiny", "--config.stage.fields.layers=7", out=tmp_path / "b.json"
  )
  assert deeper["parameters"]["total"] > tiny["parameters"]["total"]
  assert deeper["config"]["digest"] != tiny["config"]["digest"]


def test_a_run_shows_step_config_parameters_and_digests(tmp_path, capsys):
  write_run(tmp_path, step=5)
  report = inspect("--workdir", tmp_path, out=tmp_path / "out.json")
  assert report["step"] == 5
  assert report["config"]["digest"] == digest(plain(experiment()))
  assert set(report["digests"]) == {"params", "ema", "optimizer", "data"}
  rows = report["parameters"]["arrays"]
  assert report["parameters"]["total"] == sum(row["count"] for row in rows) > 0
  assert all(row["axes"] is not None and len(row["axes"]) == len(row["shape"]) for row in rows)
  text = capsys.readouterr().out
  for value in (*report["digests"].values(), report["config"]["digest"], rows[0]["name"]):
    assert value in text
  assert inspect("--workdir", tmp_path, "--step", 5, out=tmp_path / "out.json") == report


@pytest.mark.parametrize("field", ["digests", "arrays"])
def test_a_manifest_is_not_believed(tmp_path, capsys, field):
  """Well-formed and with a right hash of itself, but its digests are not those of the arrays."""
  write_run(tmp_path, step=5)
  directory = tmp_path / "checkpoints" / "00000005"
  manifest = mf.read(directory)
  forged = {
    "digests": {**manifest.digests, "ema": "0" * 64},
    "arrays": tuple(
      dataclasses.replace(a, sha256="0" * 64) if a.item == "ema" else a for a in manifest.arrays
    ),
  }
  mf.write(directory, dataclasses.replace(manifest, **{field: forged[field]}))
  assert main(["inspect", "--workdir", str(tmp_path)]) == 4
  error = capsys.readouterr().err
  assert ("array ema/" if field == "arrays" else "digests are not of its arrays") in error


@pytest.mark.parametrize(
  ("arguments", "code"),
  [
    (["--workdir", "absent"], 4),
    (["--config", "absent.py"], 2),
    (["--config", f"{RECIPE}:tiny", "--step", "3"], 2),
    (["--workdir", ".", "--config.train.steps=3"], 2),
  ],
)
def test_wrong_usage_has_its_exit_code(arguments, code, capsys):
  assert main(["inspect", *arguments]) == code
  assert capsys.readouterr().err.startswith("vidgen inspect: ")
