"""The page holds what the run left, says what is missing, and keeps to its size."""

import base64
import json
import re
import shutil

import pytest
from run_maker import (
  CONFIG,
  make_checkpoint,
  make_logs,
  make_run,
  make_samples,
  make_scores,
  prompt,
)

from vidgen import config as cfg
from vidgen.errors import ConfigError, DataError
from vidgen.inputs.decode import decode_video
from vidgen.media.report import duration, write_report
from vidgen.media.report_scores import wilson
from vidgen.media.run_files import read_run

MP4 = re.compile(r'src="data:video/mp4;base64,([A-Za-z0-9+/=]+)"')


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A whole run and its page."""
  workdir = make_run(tmp_path_factory.mktemp("whole") / "run")
  write_report(workdir, out=workdir / "report.html")
  return workdir, (workdir / "report.html").read_text()


def page_of(workdir, **options) -> str:
  write_report(workdir, out=workdir / "page.html", **options)
  return (workdir / "page.html").read_text()


def test_it_needs_no_other_file(whole):
  page = whole[1]
  links = re.findall(r'(?:src|href|poster|url|action)\s*[=(]\s*["\']?([^"\')\s>]*)', page)
  assert links and all(link.startswith(("data:", "#")) for link in links)
  assert "@import" not in page and "http:" not in page and "https:" not in page
  assert "default-src 'none'" in page


def test_the_videos_are_whole_enlarged_and_those_of_the_samples(whole):
  workdir, page = whole
  clips = [decode_video(base64.b64decode(code)) for code in MP4.findall(page)]
  videos = [clip.frames for clip in clips]
  assert [v.shape for v in videos] == [(8, 128, 128, 3)] * 4
  assert [clip.duration for clip in clips] == [2.0] * 4  # 8 frames at 4 a second
  for i, video in enumerate(videos):
    original = decode_video((workdir / "samples" / f"{i:05d}.mp4").read_bytes()).frames
    small = video.reshape(8, 16, 8, 16, 8, 3).mean(axis=(2, 4))
    assert abs(small - original).mean() < 3


def test_it_tells_the_record(whole):
  workdir, page = whole
  run = read_run(workdir)
  assert run.checkpoint is not None
  for value in (
    *run.checkpoint.digests.values(), *run.checkpoint.versions.values(), cfg.digest(CONFIG),
    "12,288 parameters", "movie_gen_t2v_tiny", "train.optimizer.name", "seed 3",
    "24 linear-quadratic",
  ):  # fmt: skip
    assert value in page


def test_it_tells_scores_verdicts_and_protocol(whole):
  page = whole[1]
  assert "<dd>50.0%<small>of 4 samples, shapes_probe</small></dd>" in page
  assert page.count('class="wrong"') == 2 and page.count('class="right"') == 14
  assert "motion: left" in page and "shape: cross" in page
  assert "a" * 64 in page and "b" * 64 in page
  assert "uint8 RGB" in page and "95% interval" in page


def test_it_tells_curves_and_bad_samples(whole):
  workdir, page = whole
  assert [m for m in re.findall(r"<h3>(\w+)", page)][:3] == ["Loss", "Gradient", "Throughput"]
  last = json.loads((workdir / "train.jsonl").read_text().splitlines()[-1])
  assert f"{last['held_out_loss']:.4f}".rstrip("0") in page
  assert "not finite and changed nothing: 1." in page
  assert "4 bad samples were met" in page and "caption is missing" in page
  assert "video/train/00000.tar, key 00000000" in page


def test_equal_runs_give_equal_pages(whole):
  workdir, page = whole
  assert page_of(workdir) == page


def test_prompts_and_names_stay_text(tmp_path):
  attack = "</p></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' $title &lt;"
  workdir = make_run(tmp_path / "<b>run", prompts=[attack, *map(prompt, range(3))])
  config = {**CONFIG, "name": attack}
  (workdir / "config.json").write_text(json.dumps(config))
  page = page_of(workdir)
  assert "alert(1)</script>" not in page and "<img" not in page and "<b>run" not in page
  assert page.count("<script") == 4 and page.count("</script>") == 4  # three charts and its own
  assert "&lt;/p&gt;&lt;/script&gt;&lt;script&gt;alert(1)" in page


def test_only_so_many_videos_and_bytes_are_embedded(whole):
  workdir, _ = whole
  two = page_of(workdir, videos=2)
  assert len(MP4.findall(two)) == 2 and "The first 2 of 4" in two and prompt(2) not in two
  none = page_of(workdir, video_bytes=0)
  assert not MP4.findall(none) and none.count("to keep this page small") == 4 and prompt(3) in none
  assert not MP4.findall(page_of(workdir, videos=0))
  one = len(re.search(r'src="data:video[^>]*poster="[^"]*"', two)[0])
  assert len(MP4.findall(page_of(workdir, video_bytes=int(2.5 * one)))) == 2


def test_large_videos_are_embedded_as_they_are(tmp_path):
  make_logs(tmp_path / "run", steps=20)
  make_samples(tmp_path / "run" / "samples", count=1, size=160)
  found = MP4.findall(page_of(tmp_path / "run"))
  file = tmp_path / "run" / "samples" / "00000.mp4"
  assert base64.b64decode(found[0]) == file.read_bytes()


@pytest.mark.parametrize(
  ("part", "said"),
  [
    ("config.json", "config.json is not there"),
    ("train.jsonl", "train.jsonl is not there"),
    ("speed.jsonl", "speed.jsonl is not there"),
    ("checkpoints", "No checkpoint is there yet"),
    ("samples", "There are no samples"),
    ("scores.json", "There are no scores"),
    ("quarantine.jsonl", "No bad sample was met"),
  ],
)
def test_what_is_missing_is_said_and_the_rest_is_there(whole, part, said, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  path = workdir / part
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  page = page_of(workdir)
  assert said in page and said not in whole[1]
  assert ("movie_gen_t2v_tiny" in page) == (part != "config.json")
  assert (len(MP4.findall(page)) == 4) == (part != "samples")


def test_an_empty_run_has_a_page(tmp_path):
  page = page_of(tmp_path)
  assert page.count('class="absent"') >= 5 and "No bad sample was met" in page


@pytest.mark.parametrize(
  "part",
  ["config.json", "samples/samples.jsonl", "scores.json", "checkpoints/00000400/manifest.json"],
)
def test_damaged_parts_are_said(whole, part, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  (workdir / part).write_text('{"broken": [')
  assert "cannot be read" in page_of(workdir)


def test_the_newest_checkpoint_is_the_one_that_is_told(tmp_path):
  for step in (50, 400, 100):
    make_checkpoint(tmp_path, step=step)
  (tmp_path / "checkpoints" / "00000900.saving").mkdir()
  run = read_run(tmp_path)
  assert run.checkpoint is not None and run.checkpoint.step == run.step == 400


def test_a_log_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path):
  make_logs(tmp_path, steps=20)
  text = (tmp_path / "train.jsonl").read_text()
  (tmp_path / "train.jsonl").write_text(text + '{"step": 21, "lo')
  run = read_run(tmp_path)
  assert run.step == 20 and "curves, some" not in run.missing
  (tmp_path / "train.jsonl").write_text("nonsense\n" + text)
  assert "1 lines of train.jsonl cannot be read" in read_run(tmp_path).missing["curves, some"]


def test_buckets_have_their_own_curves(tmp_path):
  rows = [{"step": s, "bucket": ("video", "image")[s % 2], "loss": 1.0 / s} for s in range(1, 41)]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  found = {s.name: s.steps.tolist() for s in read_run(tmp_path).curves("loss")}
  assert found == {"image": list(range(1, 41, 2)), "video": list(range(2, 41, 2))}
  assert "image 0.0256" in page_of(tmp_path)


def test_a_sample_that_was_changed_is_not_shown_as_if_it_were_whole(whole, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  (workdir / "samples" / "00002.mp4").write_bytes(b"<html>")
  page = page_of(workdir)
  assert len(MP4.findall(page)) == 3 and "00002.mp4: not the file that was recorded" in page


def test_scores_of_other_samples_are_not_hung_on_these(whole, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  make_samples(tmp_path / "others", count=3)
  make_scores(workdir / "scores.json", tmp_path / "others")
  page = page_of(workdir)
  assert "These scores are of other samples" in page and 'class="verdict"' not in page
  assert "These scores are of other samples" not in whole[1]


def test_samples_and_scores_may_lie_elsewhere(whole, tmp_path):
  make_samples(tmp_path / "s", count=2)
  make_scores(tmp_path / "scores.json", tmp_path / "s")
  page = page_of(whole[0], samples=tmp_path / "s", scores=tmp_path / "scores.json")
  assert "All 2, in order" in page and "of 2 samples, shapes_probe" in page


def test_scores_of_the_short_form_are_read(whole, tmp_path):
  tree = json.loads((whole[0] / "scores.json").read_text())
  (tmp_path / "s.json").write_text(json.dumps({k: tree[k] for k in ("accuracy", "protocol")}))
  page = page_of(whole[0], scores=tmp_path / "s.json")
  assert "<dd>50.0%<small>" in page and 'class="verdict"' not in page


def test_what_was_asked_for_must_be_there(whole, tmp_path):
  workdir = whole[0]
  for options in ({"samples": tmp_path / "no"}, {"scores": tmp_path / "no.json"}):
    with pytest.raises(ConfigError, match="no such"):
      read_run(workdir, **options)
  with pytest.raises(ConfigError, match="no such directory"):
    read_run(tmp_path / "no")
  with pytest.raises(DataError, match="samples.jsonl"):
    read_run(workdir, samples=tmp_path)
  (tmp_path / "s.json").write_text('{"accuracy": {"all": null}, "protocol": {}}')
  with pytest.raises(DataError, match="not a finite number"):
    read_run(workdir, scores=tmp_path / "s.json")


def test_intervals_hold_the_share_and_narrow_with_the_count():
  # Wilson (1927), z = 1.96: the 95% interval of 8 in 10 is 0.490 to 0.943
  assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
  assert wilson(0, 64)[0] == 0 and wilson(64, 64)[1] == 1
  assert wilson(800, 1000)[1] - wilson(800, 1000)[0] < 0.06


def test_durations_say_two_units():
  assert [duration(s) for s in (1.25, 61.0, 3599.6, 7261.0)] == [
    "1.2 s", "1 min 1 s", "1 h 0 min", "2 h 1 min"
  ]  # fmt: skip
