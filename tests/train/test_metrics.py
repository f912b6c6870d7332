"""Reading late, averaging on the device, and logs that may fail; the progress line."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.train.metrics import Events, JsonLines, LateReader, means, read_events
from vidgen.train.progress import Progress, clock


def test_values_are_read_in_order_and_only_so_late():
  late, seen = LateReader(depth=2), []
  for i in range(5):
    late.push(jnp.float32(i), lambda value: seen.append(float(value)))
    assert seen == [float(n) for n in range(max(0, i - 1))]
  late.drain()
  assert seen == [0, 1, 2, 3, 4]


def test_means_over_batches_are_those_of_all_values():
  kind = means(("a", "loss"))
  assert means(("a", "loss")) is kind  # so that collections of two batches can merge
  one = kind.single_from_model_output(a=jnp.float32(1), loss=jnp.float32(3))
  other = kind.single_from_model_output(a=jnp.float32(2), loss=jnp.float32(7))
  got = jax.device_get(one.merge(other).compute())
  assert {k: float(v) for k, v in got.items()} == {"a": 1.5, "loss": 5.0}


def write(path, steps, *, start=0):
  log = JsonLines(path, step=start)
  for step in steps:
    log.write({"step": step, "loss": step / 2})
  log.close()
  return log


@pytest.mark.parametrize("tail", [b"", b'{"step": 4, "lo', b"\x00\xff\n", b"[]\n"])
def test_a_log_is_cut_after_the_step_and_where_it_is_torn(tail, tmp_path):
  path = tmp_path / "train.jsonl"
  write(path, range(1, 7))
  whole = path.read_bytes()
  write(path, [], start=3)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
  path.write_bytes(path.read_bytes() + tail)
  write(path, range(4, 7), start=3)
  assert path.read_bytes() == whole


def test_numbers_that_json_has_not_become_null(tmp_path):
  log = JsonLines(tmp_path / "log", step=0)
  log.write({"step": 1, "loss": float("nan"), "norm": float("inf"), "ok": 0.5})
  log.close()
  assert (tmp_path / "log").read_text() == '{"step":1,"loss":null,"norm":null,"ok":0.5}\n'


def test_float32_values_are_written_without_loss(tmp_path):
  values = np.random.default_rng(0).normal(size=100).astype(np.float32)
  log = JsonLines(tmp_path / "log", step=0)
  for i, value in enumerate(values):
    log.write({"step": i, "loss": float(value)})
  log.close()
  back = [json.loads(line)["loss"] for line in (tmp_path / "log").read_text().splitlines()]
  np.testing.assert_array_equal(np.float32(back), values)


def test_a_full_disk_is_counted_and_said_once(tmp_path, capsys):
  log = JsonLines(tmp_path / "log", step=0)
  log._file = open("/dev/full", "ab")
  for step in range(3):
    log.write({"step": step})
    log.flush()
  assert log.failures == 3
  assert capsys.readouterr().err.count("cannot be written, training goes on") == 1


def test_events_that_cannot_be_opened_do_not_raise(tmp_path, capsys):
  (tmp_path / "events").write_text("a file where the directory should be")
  events = Events(tmp_path / "events", step=0)
  events.write(1, {"train/loss": 1.0})
  events.close()
  assert events.failures >= 1 and "warning: events" in capsys.readouterr().err


def test_events_read_back(tmp_path):
  for start in (0, 10):  # two starts within one second do not share a file
    events = Events(tmp_path, step=start)
    events.write(start + 1, {"train/loss": 0.25, "speed/mfu": 0.5})
    events.close()
  first, second = [read_events(path) for path in sorted(tmp_path.iterdir())]
  scalars = [(v.tag, v.simple_value, e.step) for e in first for v in e.summary.value]
  assert scalars == [("train/loss", 0.25, 1), ("speed/mfu", 0.5, 1)]
  assert [e.step for e in second if e.HasField("session_log")] == [11]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere():
  terminal, plain = Terminal(), io.StringIO()
  for out in (terminal, plain):
    progress = Progress(4, out=out)
    for step in (2, 4):
      progress._next = 0.0  # as if time had passed
      progress.update(step, f"loss {step}.0")
    progress.close()
  assert "\r[============            ] steps 2/4" in terminal.getvalue()
  assert plain.getvalue().count("\n") == 2 and "\r" not in plain.getvalue()
  assert "steps 4/4" in plain.getvalue() and "ETA 0:00" in plain.getvalue()
  assert "loss 4.0" in plain.getvalue()


def test_plain_lines_are_not_printed_too_often():
  out = io.StringIO()
  progress = Progress(1000, out=out)
  for step in range(1, 1001):
    progress.update(step, "")
  assert out.getvalue().count("\n") == 2  # the first and the last


@pytest.mark.parametrize(
  ("seconds", "text"), [(5.0, "0:05"), (65.0, "1:05"), (3725.4, "1:02:05"), (float("inf"), "-")]
)
def test_clock(seconds, text):
  assert clock(seconds) == text
