"""`vidgen eval` over folders and straight from a checkpoint: tables, JSON, records, exit codes."""

import dataclasses
import json
import re

import pytest
from media_sets import clips, write_clips
from trained_run import write_run

from vidgen.cli import main
from vidgen.evals import registry
from vidgen.media.run_files import read_run


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
  about = dataclasses.replace(registry.EXTRACTORS["i3d"], target="media_sets:load_stand_in")
  monkeypatch.setitem(registry.EXTRACTORS, "i3d", about)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("sets")
  (root / "i3d.pt").write_text("0")
  write_clips(root / "fake", clips(6, frames=16, seed=1))
  write_clips(root / "real", clips(6, frames=16, seed=2))
  return root


def evaluate(folders, *more: object, metrics="fvd", weights=True, **sets: str | None):
  samples, reference = sets.get("samples", "fake"), sets.get("reference", "real")
  words = ["eval", "--metrics", metrics]
  words += ["--samples", str(folders / samples)] if samples else []
  words += ["--reference", str(folders / reference)] if reference else []
  words += ["--weights", f"i3d={folders / 'i3d.pt'}"] if weights else []
  return main([*words, *map(str, more)])


def test_a_table_and_a_file_hold_values_and_records(folders, tmp_path, capsys):
  out = tmp_path / "deep" / "scores.json"
  assert evaluate(folders, "--allow-small", "--json", out, metrics="fvd,kvd,psnr") == 0
  printed = capsys.readouterr().out
  assert "fvd  6 samples of 16 x 16 x 16 at 8 fps" in printed and "n_real 6" in printed
  tree = json.loads(out.read_text())
  assert list(tree["scores"]) == ["fvd", "kvd", "psnr"] and "accuracy" not in tree
  value = tree["scores"]["fvd"]["values"]["fvd"]
  assert re.search(rf"fvd +{value:.6g}\n", printed)
  assert tree["scores"]["fvd"]["protocol"]["details"]["covariance"] == "n-1"
  assert evaluate(folders, "--allow-small", "--compare", out, metrics="fvd") == 0
  assert "  +0\n" in capsys.readouterr().out
  assert evaluate(folders, "--allow-small", "--covariance", "n", "--compare", out) == 2
  assert "details.covariance: 'n-1' -> 'n'" in capsys.readouterr().err
  assert evaluate(folders, "--allow-small", "--frames", "12", "--compare", out) == 2
  assert "details.clip_frames: 16 -> 12" in capsys.readouterr().err


def test_scores_that_cannot_be_compared_are_said_and_written_all_the_same(
  folders, tmp_path, capsys
):
  """Hours of work are not lost to a record that differs."""
  old, new = tmp_path / "old.json", tmp_path / "new.json"
  assert evaluate(folders, "--allow-small", "--json", old, metrics="fvd,psnr") == 0
  more = ["--allow-small", "--covariance", "n", "--compare", old, "--json", new]
  capsys.readouterr()
  assert evaluate(folders, *more, metrics="fvd,psnr") == 2
  said = capsys.readouterr()
  assert "fvd: these scores cannot be compared" in said.err and "psnr:" not in said.err
  tree = json.loads(new.read_text())
  assert set(tree["scores"]) == {"fvd", "psnr"} and set(tree["changes"]) == {"psnr"}
  assert re.search(r"psnr +[0-9.]+  \+0\n", said.out) and re.search(r"fvd +[0-9.]+\n", said.out)


def test_the_report_reads_distances_as_numbers(folders, tmp_path):
  out = tmp_path / "scores.json"
  assert evaluate(folders, "--allow-small", "--json", out) == 0
  (scored,) = read_run(tmp_path, scores=out).scores
  assert not scored.shares and scored.metric == "fvd"


def test_statistics_of_a_reference_take_its_place(folders, tmp_path, capsys):
  stats, one, two = tmp_path / "stats.npz", tmp_path / "1.json", tmp_path / "2.json"
  assert evaluate(folders, "--allow-small", "--stats", stats, "--json", one) == 0
  assert evaluate(folders, "--allow-small", "--stats", stats, "--json", two, reference=None) == 0
  assert json.loads(one.read_text()) == json.loads(two.read_text())
  (folders / "other.pt").write_text("1")
  other = ["--weights", f"i3d={folders / 'other.pt'}"]
  assert evaluate(folders, "--allow-small", "--stats", stats, *other, weights=False) == 2
  assert "extractor.digest: 'random 0' -> 'random 1'" in capsys.readouterr().err
  stats.write_bytes(stats.read_bytes()[:-30])
  assert evaluate(folders, "--allow-small", "--stats", stats) == 3
  assert "stats.npz: holds no reference statistics" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("more", "options", "code", "message"),
  [
    ([], {}, 3, "fvd of 6 and 6 samples is mostly bias"),
    ([], {"weights": False}, 2, "needs --weights i3d=PATH: I3D of Kinetics-400: i3d_torchscript"),
    (["--weights", "i3e=x"], {}, 2, "--weights 'i3e': known are i3d, c3d"),
    (["--weights", "i3d=x"], {}, 2, "--weights i3d: given twice"),
    (["--weights", "inception"], {}, 2, "expected NAME=VALUE"),
    (["--convention", "fvd=odd"], {}, 2, "unknown convention 'odd'; known are plain"),
    (["--convention", "fvd"], {}, 2, "expected NAME=VALUE"),
    (["--frames", "0"], {}, 2, "--frames 0: must lie in"),
    (["--clip", "end"], {}, 2, "--clip 'end': known are start"),
    (["--covariance", "m"], {}, 2, "--covariance 'm': known are n-1, n"),
    (["--batch-size", "0"], {}, 2, "--batch-size must be at least 1"),
    (
      ["--frames", "20", "--allow-small"],
      {},
      3,
      "at least 6 of 6 cannot be scored: 0000.mp4: has 16",
    ),
    ([], {"reference": None}, 2, "--reference is needed, or --stats"),
    ([], {"reference": "none"}, 2, "none: no such file or folder"),
    ([], {"samples": None}, 2, "--samples is needed, or --workdir"),
    ([], {"samples": "none"}, 2, "none: no such folder"),
    (["--count", "3"], {}, 2, "--count is for sampling from a --workdir"),
    (["--workdir", "x"], {}, 2, "--workdir samples from --prompts"),
    ([], {"metrics": "fdv"}, 2, "unknown metric 'fdv'; known are shapes_probe, fvd"),
    ([], {"metrics": "win_rate"}, 2, "win_rate needs --votes FILE"),
  ],
)
def test_bad_arguments_are_one_line_and_an_exit_code(folders, capsys, more, options, code, message):
  assert evaluate(folders, *more, **options) == code
  lines = capsys.readouterr().err.splitlines()
  (error,) = (line for line in lines if not line.startswith("items "))  # those are of progress
  assert message in error


def test_a_checkpoint_is_sampled_and_scored_in_one_call(folders, tmp_path, capsys):
  workdir = write_run(tmp_path / "run")
  (tmp_path / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(8)))
  reference = write_clips(tmp_path / "real", clips(5, frames=8), fps=4.0)
  words = [
    "eval", "--workdir", str(workdir), "--prompts", str(tmp_path / "p.txt"), "--count", "4",
    "--reference", str(reference), "--metrics", "fvd", "--frames", "8", "--allow-small",
    "--weights", f"i3d={folders / 'i3d.pt'}", "--json", str(tmp_path / "s.json"),
  ]  # fmt: skip
  assert main(words) == 0
  assert "4 samples of step 5 in" in capsys.readouterr().out
  protocol = json.loads((tmp_path / "s.json").read_text())["scores"]["fvd"]["protocol"]
  assert (protocol["count"], protocol["frames"], protocol["fps"]) == (4, 8, 4.0)
  assert len(list((workdir / "eval" / "samples").glob("*.mp4"))) == 4


def test_votes_need_no_samples(tmp_path, capsys):
  (tmp_path / "v.csv").write_text("item,vote\na,ours\nb,theirs\nc,ours\nd,tie\n")
  assert main(["eval", "--metrics", "win_rate", "--votes", str(tmp_path / "v.csv")]) == 0
  assert re.search(r"net +25\n", capsys.readouterr().out)


def test_scores_before_one_that_fails_are_kept(folders, tmp_path, capsys):
  out = tmp_path / "scores.json"
  # 6 clips are too few for FVD, which is only known when psnr is done
  assert evaluate(folders, "--json", out, metrics="psnr,fvd") == 3
  said = capsys.readouterr()
  assert "psnr" in said.out and "--allow-small" in said.err
  assert list(json.loads(out.read_text())["scores"]) == ["psnr"]


def test_a_convention_of_what_is_not_asked_for_is_refused(folders, capsys):
  assert evaluate(folders, "--convention", "kid=whole", metrics="psnr", weights=False) == 2
  assert "--convention 'kid': known are psnr" in capsys.readouterr().err
