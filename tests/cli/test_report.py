"""`vidgen report` writes the page, says what is not in it, and ends with the documented codes."""

import json

from vidgen import cli
from vidgen.config import canonical_json
from vidgen.train.metrics import JsonLines


def make_workdir(path):
  path.mkdir()
  log = JsonLines(path / "train.jsonl", step=0)
  for step in range(1, 31):
    log.write({"step": step, "bucket": "video", "bad_steps": 0.0, "loss": 1 / step})
  log.close()
  (path / "config.json").write_text(canonical_json({"name": "a run", "train": {"steps": 30}}))
  return path


def test_it_writes_a_page_and_names_what_is_missing(tmp_path, capsys):
  workdir = make_workdir(tmp_path / "run")
  summary = tmp_path / "summary.json"
  assert cli.main(["report", "--workdir", str(workdir), "--json", str(summary)]) == 0
  page = (workdir / "report.html").read_text()
  assert page.startswith("<!doctype html>") and "<h1>a run</h1>" in page
  out = capsys.readouterr().out
  assert "report.html" in out and "without samples" in out and "without checkpoint" in out
  found = json.loads(summary.read_text())
  assert found["bytes"] == len(page.encode()) and found["videos"] == 0
  assert set(found["missing"]) == {"speed", "checkpoint", "samples", "scores"}


def test_out_may_be_in_a_new_folder(tmp_path):
  workdir, out = make_workdir(tmp_path / "run"), tmp_path / "new" / "page.html"
  assert cli.main(["report", "--workdir", str(workdir), "--out", str(out)]) == 0
  assert out.is_file() and not (workdir / "report.html").exists()


def test_bad_usage_ends_with_2_and_bad_data_with_3(tmp_path, capsys):
  workdir = make_workdir(tmp_path / "run")
  (tmp_path / "scores.json").write_text("{}")
  (tmp_path / "folder").mkdir()
  for arguments, code, said in (
    (["--workdir", str(tmp_path / "no")], 2, "no such directory"),
    (["--workdir", str(workdir), "--samples", str(tmp_path / "no")], 2, "no such directory"),
    (["--workdir", str(workdir), "--videos", "-1"], 2, "must not be negative"),
    (["--workdir", str(workdir), "--out", str(tmp_path / "folder")], 2, "folder"),
    (["--workdir", str(workdir), "--scores", str(tmp_path / "scores.json")], 3, "no scores"),
    (["--workdir", str(workdir), "--samples", str(tmp_path / "folder")], 3, "samples.jsonl"),
  ):
    assert cli.main(["report", *arguments]) == code, arguments
    err = capsys.readouterr().err
    assert said in err and err.startswith("vidgen report: ") and err.count("\n") == 1
