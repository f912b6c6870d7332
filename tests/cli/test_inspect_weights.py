"""`vidgen inspect --weights`: what other people's files hold; exit code 4 for hostile ones."""

import json
import os
import pickle
from pathlib import Path

import pytest

from vidgen.cli import main
from vidgen.inputs.storage import file_sha256

FILES = Path(__file__).resolve().parents[1] / "fixtures" / "weight_files"


def test_every_tensor_is_listed_with_shape_dtype_and_count(tmp_path, capsys):
  out = tmp_path / "out.json"
  assert main(["inspect", "--weights", str(FILES / "script.pt"), "--json", str(out)]) == 0
  report = json.loads(out.read_text())
  rows = {row["name"]: row for row in report["parameters"]["arrays"]}
  weight = rows["layers.0.linear.weight"]
  assert (weight["shape"], weight["dtype"], weight["count"]) == ([2, 3], "float32", 6)
  assert report["parameters"]["total"] == sum(row["count"] for row in rows.values())
  assert report["digests"] == {"content": file_sha256(FILES / "script.pt")}
  printed = capsys.readouterr().out
  assert "layers.0.linear.weight" in printed and report["digests"]["content"] in printed


def test_a_hostile_file_is_exit_code_4_one_line_and_nothing_runs(tmp_path, capsys):
  canary = tmp_path / "canary"

  class Call:
    def __reduce__(self):
      return os.system, (f"touch {canary}",)

  (tmp_path / "model.pt").write_bytes(pickle.dumps(Call()))
  for path in (tmp_path / "model.pt", tmp_path):
    assert main(["inspect", "--weights", str(path)]) == 4
    error = capsys.readouterr().err
    assert "model.pt" in error and "Traceback" not in error
  assert not canary.exists()


@pytest.mark.parametrize("more", [["--step", "3"], ["--config.a=1"]])
def test_what_belongs_to_runs_and_configs_is_refused(more):
  assert main(["inspect", "--weights", str(FILES / "zip.pt"), *more]) == 2
