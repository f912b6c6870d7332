"""`vidgen bench step`: what it prints and writes, and that stalls are seen."""

import json
import time

from test_bench import SMALL

from vidgen.cli import main
from vidgen.cli.bench import TINY, step
from vidgen.config import load_config, parse_overrides
from vidgen.train.experiment import resolve


def test_figures_are_of_the_steps_asked_for_and_consistent(tmp_path, capsys, monkeypatch):
  out = tmp_path / "bench.json"
  monkeypatch.setattr(step, "TURNS", 2)  # each traces the step anew, which takes seconds
  assert main(["bench", "--steps", "10", "--warmup", "3", "--json", str(out), *SMALL]) == 0
  figures = json.loads(out.read_text())
  assert figures["kind"] == "step" and figures["compile_seconds"] > 0
  assert figures["steps"] == 10 and figures["warmup_steps"] == 3 and figures["batch_size"] == 8
  assert figures["loop_over_bare"] == figures["loop_seconds"] / figures["bare_seconds"]
  assert 0 < figures["warmup_seconds"] and 0 <= figures["data_wait"] < 1
  printed = capsys.readouterr().out
  assert "loop over bare" in printed and figures["data"] == "made up"
  for name in ("bare", "loop"):
    for figure in (f"{name}_seconds", f"{name}_median_seconds"):
      assert f" {figures[figure] * 1e3:.2f} ms" in printed


class Stalling(step.MadeUp):
  """Made-up batches of which every fifth is late."""

  seconds = 0.4

  def __init__(self, programs):
    super().__init__(programs)
    self._asked = 0

  def __next__(self):
    self._asked += 1
    if self._asked % 5 == 0:
      time.sleep(self.seconds)
    return super().__next__()


def test_a_stall_now_and_then_is_seen_though_most_steps_are_quick():
  quiet = {"train.save_every": 0, "train.eval_every": 0, "train.sheet_every": 0}
  config = load_config(TINY, {**quiet, **parse_overrides(SMALL)})
  figures = step.measure(
    resolve(config), open_data=lambda programs, _: Stalling(programs), steps=10, warmup=3, turns=1
  )
  late = 2 * Stalling.seconds / 10  # a step: of any ten batches in a row two are late
  assert figures["steps"] == 10 and figures["loop_seconds"] >= late
  assert figures["loop_over_bare"] >= late / figures["bare_seconds"]
  assert figures["data_wait"] >= late / figures["loop_seconds"]
  assert figures["loop_median_seconds"] < figures["loop_seconds"]  # it tells nothing of them
