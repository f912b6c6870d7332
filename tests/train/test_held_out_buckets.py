"""Held-out metrics of each bucket beside their mean, in the logs and in the report."""

import json

import jax
import numpy as np
import pytest
from fake_run import FakeData, experiment, run
from fake_stage import FakeConfig, FakeStage

from vidgen.dist.mesh import make_mesh, on_mesh
from vidgen.media.report import write_report
from vidgen.media.run_files import read_run
from vidgen.train.metrics import read_events
from vidgen.train.programs import HostBatch, Programs


class Both(FakeData):
  """Held-out batches of both buckets, those of images three to one."""

  def held_out(self, batches):
    del batches
    buckets = ("video", "image", "image", "image")
    return [self.make(10_000 + i, bucket, self.size) for i, bucket in enumerate(buckets)]


def test_each_bucket_has_its_mean_and_the_whole_mean_is_that_of_all_batches():
  one = experiment()
  mesh = make_mesh(one.mesh)
  data = Both(one)
  with on_mesh(mesh, rules=one.rules):
    programs = Programs(one, stage=FakeStage(FakeConfig()), mesh=mesh)
    params = programs.init().ema
    batches: list[HostBatch] = [*data.held_out(4)]
    found = jax.device_get(programs.evaluate(params, batches))
    alone = jax.device_get(programs.evaluate(params, batches[:1]))  # the first is "video"
  assert set(found) == {
    f"{name}{end}" for name in ("loss", "noise") for end in ("", "/video", "/image")
  }
  assert set(alone) == {"loss", "noise"}  # of one bucket there is nothing to tell apart
  assert found["loss/video"] == alone["loss"] != found["loss/image"]
  mean = (found["loss/video"] + 3 * found["loss/image"]) / 4
  assert found["loss"] == pytest.approx(mean, rel=1e-6)


def test_logs_events_and_the_report_have_the_curves(tmp_path):
  one = experiment(steps=4, eval_every=2)
  run(one, tmp_path, data=Both(one))
  rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
  held = [row for row in rows if "held_out_loss" in row]
  assert [row["step"] for row in held] == [2, 4]
  assert all(np.isfinite(row["held_out_loss/video"]) for row in held)
  (events,) = (tmp_path / "events").iterdir()
  tags = {value.tag for event in read_events(events) for value in event.summary.value}
  assert {"held_out/loss", "held_out/loss/video", "held_out/noise/image"} <= tags
  curves = {s.name: s for s in read_run(tmp_path).by_bucket("held_out_loss")}
  assert set(curves) == {"image", "video"} and curves["video"].steps.tolist() == [2, 4]
  assert curves["image"].values.tolist() == [row["held_out_loss/image"] for row in held]
  write_report(tmp_path, out=tmp_path / "report.html")
  assert "Held-out loss by bucket" in (tmp_path / "report.html").read_text()
  run(experiment(steps=1), tmp_path / "one")
  write_report(tmp_path / "one", out=tmp_path / "one.html")
  assert "by bucket" not in (tmp_path / "one.html").read_text()


def test_twenty_buckets_are_drawn_in_as_many_colours_as_there_are(tmp_path):
  rows = [{"step": 1, "bucket": "b0", "loss": 1.0, "gradient_norm": 1.0, "bad_steps": 0.0}]
  rows += [{"step": 1, "held_out_loss": 1.0, **{f"held_out_loss/b{i}": 1.0 for i in range(20)}}]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  write_report(tmp_path, out=tmp_path / "report.html")
  page = (tmp_path / "report.html").read_text()
  assert page.count("Held-out loss by bucket, ") >= 5 and "by bucket, 5 of 5" in page
  assert 'class="key line s3"' in page and 'class="key line s4"' not in page
