"""The loop: a broken run equals the unbroken one, and every guard fires when it should."""

import json
import os
import re
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_run import FakeData, changed, experiment, run
from fake_stage import FakeConfig, FakeStage

from vidgen.dist.mesh import MeshConfig
from vidgen.errors import (
  CheckpointError,
  ConfigError,
  DataError,
  NonFiniteError,
  Preempted,
)
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.metrics import read_events


def digests(workdir, step=12):
  checkpoints = Checkpoints(workdir / "checkpoints")
  try:
    return checkpoints.digests(step)
  finally:
    checkpoints.close()


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("unbroken")
  run(experiment(), workdir)
  return workdir


class Killed(BaseException):
  pass


def kill_at(position):
  def on_next(now):
    if now == position:
      raise Killed

  return on_next


@pytest.mark.parametrize("position", [3, 5, 9, 11])
def test_a_broken_run_equals_the_unbroken_one(position, unbroken, tmp_path):
  one = experiment()
  with pytest.raises(Killed):
    run(one, tmp_path, data=FakeData(one, on_next=kill_at(position)))
  run(one, tmp_path)
  assert digests(tmp_path) == digests(unbroken)
  assert (tmp_path / "train.jsonl").read_bytes() == (unbroken / "train.jsonl").read_bytes()
  assert [entry["step"] for entry in lines(tmp_path / "speed.jsonl")] == [4, 8, 12]


def test_a_run_that_has_ended_does_nothing_when_started_again(unbroken):
  before = (unbroken / "train.jsonl").read_bytes()
  state = run(experiment(), unbroken)
  assert int(state.step) == 12 and (unbroken / "train.jsonl").read_bytes() == before


def test_a_run_of_fewer_steps_goes_on_to_more(unbroken, tmp_path):
  run(experiment(steps=7), tmp_path)
  run(experiment(), tmp_path)
  assert digests(tmp_path) == digests(unbroken)


def test_the_log_has_every_step_and_every_evaluation(unbroken):
  entries = lines(unbroken / "train.jsonl")
  steps = [entry for entry in entries if "loss" in entry]
  assert [entry["step"] for entry in steps] == list(range(1, 13))
  assert [entry["step"] for entry in steps if entry["bucket"] == "image"] == [4, 8, 12]
  assert [e["step"] for e in entries if "held_out_loss" in e] == [6, 12]
  assert steps[-1]["loss"] < steps[0]["loss"]
  assert {"gradient_norm", "update_norm", "learning_rate", "bad_steps"} <= set(steps[0])


def test_a_log_is_cut_where_a_kill_left_it(unbroken, tmp_path):
  one = experiment()
  with pytest.raises(Killed):
    run(one, tmp_path, data=FakeData(one, on_next=kill_at(9)))
  with open(tmp_path / "train.jsonl", "a") as file:
    file.write('{"step": 9, "loss"')
  run(one, tmp_path)
  assert (tmp_path / "train.jsonl").read_bytes() == (unbroken / "train.jsonl").read_bytes()


def test_events_can_be_read_and_do_not_repeat_steps(tmp_path):
  one = experiment()
  with pytest.raises(Killed):
    run(one, tmp_path, data=FakeData(one, on_next=kill_at(9)))
  run(one, tmp_path)
  first, second = [read_events(path) for path in sorted((tmp_path / "events").iterdir())]
  starts = [e for e in second if e.HasField("session_log")]
  assert [e.step for e in starts] == [6]  # what came before from step 6 on is void
  scalars = [(v.tag, e.step) for e in second for v in e.summary.value]
  assert ("train/loss", 8) in scalars and ("held_out/loss", 12) in scalars
  assert min(step for _, step in scalars) > 5
  assert ("train/loss", 4) in [(v.tag, e.step) for e in first for v in e.summary.value]


def test_speed_is_told_and_utilisation_only_against_a_stated_peak(unbroken, tmp_path):
  entry = lines(unbroken / "speed.jsonl")[-1]
  assert "mfu" not in entry and entry["samples_per_second"] > 0 and 0 <= entry["data_wait"] < 1
  run(experiment(peak_flops=1e9, steps=4), tmp_path)
  entry = lines(tmp_path / "speed.jsonl")[-1]
  stage = FakeStage(FakeConfig())
  work = 4 * 3 * stage.flops(stage.batch_spec(16))  # both buckets cost the same here
  seconds = 4 * entry["seconds_per_step"]
  assert entry["model_flops_per_second"] == pytest.approx(work / seconds)
  assert entry["mfu"] == pytest.approx(work / seconds / (1e9 * jax.device_count()))


def test_slow_data_show_in_the_data_wait(tmp_path):
  one = experiment(steps=8, eval_every=0, save_every=0)
  run(one, tmp_path, data=FakeData(one, on_next=lambda n: time.sleep(0.05)))
  waited = [e["data_wait"] * e["seconds_per_step"] * 4 for e in lines(tmp_path / "speed.jsonl")]
  assert 7 * 0.05 <= sum(waited) < 7 * 0.1  # the first batch is fetched before the clock starts


def test_some_checkpoints_are_kept_for_ever(tmp_path):
  run(experiment(eval_every=0, save_every=2, keep=1, keep_every=4), tmp_path)
  assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8, 10, 12]


def test_bad_samples_are_counted_in_the_log_and_said(tmp_path, capsys):
  one = experiment(steps=8, eval_every=0, save_every=0)
  data = FakeData(one, on_next=lambda n: setattr(data, "bad_samples", n // 3))
  run(one, tmp_path, data=data)
  assert [entry["bad_samples"] for entry in lines(tmp_path / "speed.jsonl")] == [1, 2]
  said = re.findall(r"warning: (\d) bad samples so far", capsys.readouterr().out)
  assert said == ["1", "2"]


def test_a_stage_that_eats_what_the_data_do_not_hold_is_refused_at_once(tmp_path):
  one = experiment()
  data = FakeData(one)
  data.names = frozenset({"video", "text", "fps"})
  with pytest.raises(ConfigError, match=r"the stage eats text_mask \(bucket 'video'\)"):
    run(one, tmp_path, data=data)
  assert not (tmp_path / "train.jsonl").exists() and data.closed


def test_changes_of_config_and_data_are_refused_in_one_message(tmp_path):
  run(experiment(steps=5), tmp_path)
  other = changed(experiment(steps=6), batch_size=32)
  with pytest.raises(CheckpointError) as error:
    run(other, tmp_path, data=FakeData(other, name="other"))
  assert "train.batch_size: 16 -> 32" in str(error.value)
  assert "data.name: 'made up' -> 'other'" in str(error.value)


def test_too_many_bad_steps_in_a_row_end_the_run_and_are_told(tmp_path):
  one = experiment(save_every=2)
  with pytest.raises(NonFiniteError, match="3 non-finite steps in a row, up to step 9") as error:
    run(one, tmp_path, data=FakeData(one, spoil=(1, 3, 4, 6, 7, 8, 9, 10, 11)))
  assert error.value.exit_code == 5
  dump = json.loads((tmp_path / "non_finite.json").read_text())
  assert dump["first_batch"] == 6 and [s["step"] for s in dump["steps"]] == [7, 8, 9]
  bad = [e["step"] for e in lines(tmp_path / "train.jsonl") if e.get("loss", 0) is None]
  assert bad == [2, 4, 5, 7, 8, 9]


def test_single_bad_steps_are_survived(tmp_path):
  one = experiment(steps=6)
  state = run(one, tmp_path, data=FakeData(one, spoil=(1, 4)))
  assert int(state.bad_total) == 2 and int(state.bad_steps) == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_sigterm_saves_at_the_step_and_the_run_goes_on_from_there(unbroken, tmp_path):
  one = experiment()
  send = lambda n: os.kill(os.getpid(), signal.SIGTERM) if n == 7 else None  # noqa: E731 (a hook)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(Preempted, match="step 8 is saved") as error:
    run(one, tmp_path, data=FakeData(one, on_next=send))
  assert error.value.exit_code == 143
  assert signal.getsignal(signal.SIGTERM) is before
  run(one, tmp_path)
  assert digests(tmp_path) == digests(unbroken)
  assert (tmp_path / "train.jsonl").read_bytes() == (unbroken / "train.jsonl").read_bytes()


def test_a_signal_that_also_kills_the_data_workers_still_saves(unbroken, tmp_path):
  one = experiment()

  def die(n):
    if n == 7:
      os.kill(os.getpid(), signal.SIGTERM)
      raise RuntimeError("a worker terminated unexpectedly with exit code -15")

  with pytest.raises(Preempted, match="step 7 is saved"):
    run(one, tmp_path, data=FakeData(one, on_next=die))
  run(one, tmp_path)
  assert digests(tmp_path) == digests(unbroken)


def test_bad_data_end_the_run_and_it_is_closed(tmp_path):
  one = experiment()

  def bad(n):
    if n == 2:
      raise DataError("too many bad samples")

  data = FakeData(one, on_next=bad)
  with pytest.raises(DataError):
    run(one, tmp_path, data=data)
  assert data.closed


@pytest.mark.parametrize(
  ("change", "key"),
  [
    ({"batch_size": 32}, "train.batch_size: 16 -> 32"),
    ({"seed": 2}, "train.seed: 1 -> 2"),
    ({"ema_decay": 0.5}, "train.ema_decay: 0.9 -> 0.5"),
  ],
)
def test_a_changed_config_is_refused_unless_told(change, key, tmp_path):
  one = experiment(steps=5)
  run(one, tmp_path)
  other = changed(one, **change, steps=6, log_every=1)
  with pytest.raises(CheckpointError, match=re.escape(key)) as error:
    run(other, tmp_path)
  assert "steps" not in str(error.value) and "log_every" not in str(error.value)
  name = key.partition(":")[0]
  assert int(run(other, tmp_path, allowed=(name,)).step) == 6
  assert int(run(other, tmp_path, allowed=(name,)).step) == 6  # now nothing differs any more


def test_all_differences_are_listed(tmp_path):
  one = experiment(steps=5)
  run(one, tmp_path)
  with pytest.raises(CheckpointError) as error:
    run(changed(one, seed=9, accumulate=2, batch_size=64), tmp_path)
  for key in ("train.seed: 1 -> 9", "train.accumulate: 1 -> 2", "train.batch_size: 16 -> 64"):
    assert key in str(error.value)


def test_other_data_are_refused_unless_told(tmp_path):
  one = experiment(steps=5)
  run(one, tmp_path)
  other = changed(one, steps=6)
  with pytest.raises(CheckpointError, match="data.name: 'made up' -> 'other'"):
    run(other, tmp_path, data=FakeData(other, name="other"))
  assert int(run(other, tmp_path, data=FakeData(other, name="other"), allowed=("data",)).step) == 6


def test_a_run_restores_onto_another_mesh(unbroken, tmp_path):
  run(experiment(steps=6), tmp_path)
  state = run(experiment(mesh=MeshConfig(data=2, fsdp=2, tensor=2)), tmp_path)
  kernel = state.params["blocks"]["kernel"]
  assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
  reference = {e["step"]: e["loss"] for e in lines(unbroken / "train.jsonl") if "loss" in e}
  for entry in lines(tmp_path / "train.jsonl"):
    if "loss" in entry:
      assert entry["loss"] == pytest.approx(reference[entry["step"]], rel=1e-5)


def test_a_second_launcher_is_refused_and_a_dead_one_replaced(tmp_path):
  one = experiment(steps=3)
  seen = []

  def second(n):
    if n == 1:
      with pytest.raises(ConfigError, match="another run trains there") as error:
        run(one, tmp_path)
      seen.append(str(error.value))

  run(one, tmp_path, data=FakeData(one, on_next=second))
  assert str(os.getpid()) in seen[0]
  # a dead process left its name: the kernel has freed the lock
  (tmp_path / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 999999}))
  run(changed(one, steps=4), tmp_path)
  # another host was alive a moment ago: only time, or a hand, frees that
  (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
  with pytest.raises(ConfigError, match="elsewhere"):
    run(changed(one, steps=5), tmp_path)
  os.utime(tmp_path / "lock", (1e9, 1e9))
  run(changed(one, steps=5), tmp_path)


def test_a_directory_that_cannot_be_written_is_found_before_the_first_step(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match="cannot be written"):
    run(experiment(), tmp_path / "file" / "run")


def test_a_log_that_cannot_be_written_does_not_stop_training(tmp_path, capsys):
  one = experiment()

  def remove(n):
    if n == 2:
      (tmp_path / "train.jsonl").unlink()
      for path in (tmp_path / "events").iterdir():
        path.unlink()
      (tmp_path / "events").rmdir()

  assert int(run(one, tmp_path, data=FakeData(one, on_next=remove)).step) == 12
  assert capsys.readouterr().err.count("train.jsonl cannot be written") == 1


def test_nothing_is_compiled_after_the_start(tmp_path):
  traced = []

  class Counting(FakeStage):
    def loss(self, params, batch, rng):
      traced.append(batch["video"].shape)
      return super().loss(params, batch, rng)

  run(experiment(), tmp_path, stage=Counting(FakeConfig()))
  # one train step a bucket, one evaluation
  assert len(traced) == 3


def test_an_implicit_transfer_in_the_loop_is_an_error(tmp_path):
  one = experiment()
  data = FakeData(one)
  kept = []

  def touch(n):
    if n == 1:
      kept.append(jnp.zeros(3) + np.ones(3))

  data.on_next = touch
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    run(one, tmp_path, data=data)


def test_a_sheet_of_samples_is_drawn(tmp_path):
  from PIL import Image

  run(experiment(steps=2, sheet_every=2, sheet_count=3), tmp_path)
  with Image.open(tmp_path / "sheets" / "00000002.png") as sheet:
    assert sheet.format == "PNG" and sheet.width > 64
