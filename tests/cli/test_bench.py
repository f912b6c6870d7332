"""`vidgen bench`: what it prints and writes, and what it refuses."""

import json

import pytest

from vidgen.cli import main

SMALL = [
  "--config.stage.fields.layers=1",
  "--config.stage.fields.scan_unroll=1",
  "--config.stage.fields.width=16",
  "--config.stage.fields.heads=2",
  "--config.stage.fields.mlp_width=16",
  "--config.train.batch_size=8",
]


def test_figures_are_of_the_steps_asked_for_and_consistent(tmp_path, capsys):
  out = tmp_path / "bench.json"
  assert main(["bench", "--steps", "15", "--warmup", "2", "--json", str(out), *SMALL]) == 0
  figures = json.loads(out.read_text())
  assert figures["steps"] == 15 and figures["warmup_steps"] == 2 and figures["batch_size"] == 8
  assert figures["loop_over_bare"] == figures["loop_seconds"] / figures["bare_seconds"]
  assert 0 < figures["warmup_seconds"] and 0 <= figures["data_wait"] < 1
  assert "loop over bare" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--steps", "5"], ["--warmup", "0"]])
def test_too_few_steps_are_refused(option, capsys):
  assert main(["bench", *option]) == 2
  assert f"{option[0]} must be at least" in capsys.readouterr().err
