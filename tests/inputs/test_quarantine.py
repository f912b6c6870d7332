"""Bad samples are written once, counted once, and stop the run when there are too many."""

import json
import os
import pickle

import pytest

from vidgen.errors import DataError
from vidgen.inputs.decode import TooShort
from vidgen.inputs.quarantine import BadSample, Budget, Quarantine


def make(path, *, count=100, fraction=1.0, total=100, shards=None):
  budget = Budget(count=count, fraction=fraction, total=total)
  return Quarantine(path / "bad.jsonl", budget=budget, shards=shards)


def bad(number, shard="a.tar"):
  return BadSample(f"reason {number}", shard=shard, key=f"k{number}")


def test_each_sample_is_written_once_by_one_process_and_counted_once_over_all(tmp_path):
  first, second = make(tmp_path), make(tmp_path)
  for number in (1, 2, 1, 1):
    first.record(bad(number))
  second.record(bad(2))
  second.record(bad(3))
  lines = [json.loads(line) for line in first.path.read_text().splitlines()]
  assert lines == [{"shard": "a.tar", "key": f"k{i}", "reason": f"reason {i}"} for i in (1, 2, 3)]
  assert first.count() == second.count() == 3


def test_a_resumed_run_counts_what_the_killed_one_found_and_writes_it_not_again(tmp_path):
  make(tmp_path).record(bad(1))
  with open(tmp_path / "bad.jsonl", "a") as file:
    file.write('{"shard": "a.tar", "ke')  # killed in the middle of a line
  resumed = make(tmp_path)
  resumed.record(bad(1))
  assert resumed.count() == 1
  assert resumed.path.read_text().count("k1") == 1


def test_a_line_after_a_half_one_still_counts(tmp_path):
  (tmp_path / "bad.jsonl").write_text('{"shard": "a.tar", "ke')
  quarantine = make(tmp_path)
  quarantine.record(bad(1))
  assert make(tmp_path).count() == 1


@pytest.mark.parametrize(("count", "fraction"), [(2, 1.0), (100, 0.02)])
def test_the_budget_is_borne_and_then_stops_naming_the_first(tmp_path, count, fraction):
  quarantine = make(tmp_path, count=count, fraction=fraction)
  quarantine.record(bad(1))
  quarantine.record(bad(2))
  assert quarantine.check() == 2
  quarantine.record(bad(3))
  with pytest.raises(DataError, match=r"3 bad samples, of 100.*2 allowed.*'k1': reason 1"):
    quarantine.check()


def test_other_data_sets_in_the_file_do_not_count(tmp_path):
  quarantine = make(tmp_path, count=1, shards=["a.tar"])
  for number in range(5):
    quarantine.record(bad(number, shard="b.tar"))
  quarantine.record(bad(7))
  assert quarantine.check() == 1


def test_checking_costs_one_stat_when_nothing_is_new(tmp_path, monkeypatch):
  quarantine = make(tmp_path)
  quarantine.record(bad(1))
  quarantine.check()
  monkeypatch.setattr("builtins.open", None)
  assert quarantine.check() == 1


def test_lines_of_many_processes_do_not_mix(tmp_path):
  children = []
  for number in range(4):
    pid = os.fork()
    if not pid:
      for i in range(50):
        make(tmp_path).record(bad(f"{number}-{i}" + "x" * 400))
      os._exit(0)
    children.append(pid)
  assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
  assert make(tmp_path).count() == 200


def test_a_bad_sample_travels_between_processes_whole():
  copy = pickle.loads(pickle.dumps(bad(1)))  # noqa: S301  (our own bytes: what a worker sends)
  assert (copy.shard, copy.key, copy.reason) == ("a.tar", "k1", "reason 1")
  assert str(copy) == "shard a.tar, key 'k1': reason 1"


@pytest.mark.parametrize("again", [lambda b: pickle.loads(pickle.dumps(b)), lambda b: b.fresh()])  # noqa: S301  (likewise)
def test_a_copy_of_a_clip_that_is_too_short_knows_what_it_lasts(again):
  copy = again(TooShort("0.5 s", duration=0.5, shard="a.tar", key="k1"))
  assert type(copy) is TooShort and copy.duration == 0.5
  assert (copy.shard, copy.key, str(copy)) == ("a.tar", "k1", "shard a.tar, key 'k1': 0.5 s")
