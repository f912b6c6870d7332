"""Every second of a run's life has one cause, across kills and restarts."""

import json
import time

import pytest
from fake_run import FakeData, experiment, run
from test_loop import Killed, kill_at, lines

from vidgen.train import goodput
from vidgen.train.goodput import CAUSES, Goodput, Ledger, read, spell, summary


class Clock:
  """Both clocks: seconds since the machine was started, and since 1970."""

  def __init__(self):
    self.now = 5.0

  def ledger(self):
    return Ledger(clock=lambda: self.now, now=lambda: 1000.0 + self.now)


def spend(ledger, clock, **seconds):
  for cause, passed in seconds.items():
    clock.now += passed
    ledger.spend(cause)


def test_every_second_goes_to_one_cause():
  clock = Clock()
  ledger = clock.ledger()
  spend(ledger, clock, start=3, step=10, data=1, save=2)
  spend(ledger, clock, step=5)
  assert {k: v for k, v in ledger.seconds.items() if v} == {
    "start": 3, "step": 15, "data": 1, "save": 2
  }  # fmt: skip
  assert ledger.time - ledger.begin == 21


def test_the_life_of_a_run_adds_up_over_kills(tmp_path):
  """Saved at 10, killed at 30; went on from 10; the third start did everything anew from 10."""
  clock = Clock()
  first = clock.ledger()
  log = Goodput(tmp_path, first, first=0)
  spend(first, clock, start=5)
  log.write(0, at_once=True)
  spend(first, clock, step=20)
  log.write(10, at_once=True)
  spend(first, clock, save=1, step=40)
  log.write(30, at_once=True)  # and killed
  clock.now += 7
  second = clock.ledger()
  log = Goodput(tmp_path, second, first=10)
  spend(second, clock, start=5, step=8)
  log.write(14, at_once=True)
  with open(tmp_path / "goodput.jsonl", "ab") as file:
    file.write(b'{"step":15,"fr')  # killed while writing
  clock.now += 3
  third = clock.ledger()
  log = Goodput(tmp_path, third, first=10)
  spend(third, clock, start=5, step=100, data=2, eval=4)
  log.write(60, at_once=True)
  total = log.summary()
  log.close()
  assert total["seconds"] == {
    "step": 20 + 100, "lost": 40 + 8, "down": 7 + 3, "start": 15, "data": 2, "eval": 4,
    "sheet": 0, "save": 1,
  }  # fmt: skip
  assert total["wall"] == clock.now - 5.0 == sum(total["seconds"].values())
  assert total["starts"] == 3 and total["goodput"] == pytest.approx(120 / total["wall"])
  assert spell(total).startswith(f"goodput {120 / 200:.1%} of 200 s in 3 starts: lost 24.0%, ")


def test_lines_are_few_and_none_is_torn(tmp_path):
  clock = Clock()
  ledger = clock.ledger()
  log = Goodput(tmp_path, ledger, first=0)
  for step in range(1, 301):
    spend(ledger, clock, step=1)
    log.write(step)
  log.close()
  assert [line["step"] for line in lines(tmp_path / "goodput.jsonl")] == [1, 61, 121, 181, 241]


def test_a_run_without_lines_has_no_goodput():
  assert summary([]) == {
    "goodput": 0.0, "wall": 0.0, "starts": 0, "seconds": dict.fromkeys(CAUSES, 0.0)
  }  # fmt: skip


def test_a_killed_and_resumed_run_accounts_for_all_its_time(tmp_path, monkeypatch, capsys):
  """Slow data from step 6 on are seen, as are an evaluation, a sheet and the steps done twice."""
  monkeypatch.setattr(goodput, "EVERY", 0.0)
  one = experiment(log_every=1, save_every=5, sheet_every=6, sheet_count=2)
  begin = time.time()
  with pytest.raises(Killed):
    run(one, tmp_path, data=FakeData(one, on_next=kill_at(9)))
  (tmp_path / "goodput.json").unlink()  # as a kill would have it
  time.sleep(0.5)
  run(one, tmp_path, data=FakeData(one, on_next=lambda n: n == 8 and time.sleep(1.0)))
  wall = time.time() - begin
  total = json.loads((tmp_path / "goodput.json").read_text())
  spent = total["seconds"]
  assert total == summary(read(tmp_path / "goodput.jsonl"))
  assert total["wall"] == pytest.approx(sum(spent.values())) == pytest.approx(wall, abs=0.5)
  assert total["starts"] == 2 and 0.5 <= spent["down"] < 1.5 and 1.0 <= spent["data"] < 2.0
  assert all(spent[cause] > 0 for cause in CAUSES)
  steps = {(line["from"], line["step"]): line["seconds"]["step"] for line in
           lines(tmp_path / "goodput.jsonl") if "step" in line["seconds"]}  # fmt: skip
  assert spent["lost"] == pytest.approx(steps[0, 7] - steps[0, 5])
  assert "goodput" in capsys.readouterr().out.splitlines()[-1]
  assert all(0 <= line["goodput"] < 1 + 1e-9 for line in lines(tmp_path / "speed.jsonl"))
