"""From a checkpoint to videos, scores and exports, through the command line."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from trained_run import params, write_run

from vidgen.cli import main
from vidgen.inputs.storage import file_sha256
from vidgen.interop import run_exported
from vidgen.interop.safetensors import load_safetensors

ATTRIBUTES = {"shape": "circle", "colour": "red", "motion": "left", "background": "black"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp("prompts") / "held_out.jsonl"
  lines = [{"key": f"{i:09}", "prompt": f"prompt {i}", "attributes": ATTRIBUTES} for i in range(10)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def sample(workdir, prompts, out, *more):
  return main(
    ["sample", "--workdir", str(workdir), "--prompts", str(prompts), "--out", str(out), *more]
  )


@pytest.fixture(scope="module")
def samples(workdir, prompts, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "samples"
  assert sample(workdir, prompts, out, "--count", "4", "--seed", "3") == 0
  return out


def records(out):
  return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_sampling_takes_the_average_and_records_what_it_did(workdir, samples, prompts, tmp_path):
  assert [r["weights"] for r in records(samples)] == ["ema"] * 4
  assert [(r["index"], r["key"], r["prompt"], r["seed"], r["step"]) for r in records(samples)] == [
    (i, f"{i:09}", f"prompt {i}", 3, 5) for i in range(4)
  ]
  summary = tmp_path / "summary.json"
  options = ("--count", "4", "--seed", "3", "--weights", "params", "--json", str(summary))
  assert sample(workdir, prompts, tmp_path / "other", *options) == 0
  other = records(tmp_path / "other")
  assert other[0]["params_digest"] != records(samples)[0]["params_digest"]
  assert other[0]["latents_sha256"] != records(samples)[0]["latents_sha256"]
  assert json.loads(summary.read_text())["count"] == 4


def test_the_batch_size_changes_nothing_but_the_last_bits(workdir, samples, prompts, tmp_path):
  out = tmp_path / "out"
  assert sample(workdir, prompts, out, "--count", "9", "--seed", "3", "--batch-size", "16") == 0
  for i in range(4):
    name = f"latents/{i:05}.npy"
    np.testing.assert_allclose(np.load(out / name), np.load(samples / name), atol=1e-5)


DIE = """
import os, signal, sys
from vidgen.cli import main
from vidgen.evals import sample_files

written, write = [], sample_files.write_whole

def write_or_die(path, content):
  written.append(path)
  if len(written) == 29:  # within the latents of the second batch of eight
    path.with_name(f".{path.name}.1.partial").write_bytes(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
  write(path, content)

sample_files.write_whole = write_or_die
sys.exit(main(sys.argv[1:]))
"""


def test_sampling_that_is_killed_goes_on_where_it_was(workdir, prompts, tmp_path, capsys):
  many = tmp_path / "many.txt"
  many.write_text("".join(f"prompt {i}\n" for i in range(24)))
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  assert sample(workdir, many, whole, "--batch-size", "8") == 0
  command = ["sample", "--workdir", workdir, "--prompts", many, "--out", broken]
  command = [sys.executable, "-c", DIE, *map(str, command), "--batch-size", "8"]
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert len(list(broken.glob("latents/*.json"))) == 10 and len(list(broken.glob("*.mp4"))) == 8
  assert not (broken / "samples.jsonl").exists()
  capsys.readouterr()
  assert sample(workdir, many, broken, "--batch-size", "8") == 0
  assert "; 10 had their latents already" in capsys.readouterr().out
  assert records(broken) == records(whole)
  for record in records(whole):
    assert file_sha256(broken / record["file"]) == record["sha256"]
  assert {p.name for p in broken.rglob("*")} == {p.name for p in whole.rglob("*")}


def score(samples, reference, *more):
  return main(
    ["eval", "--samples", str(samples), "--reference", str(reference), "--metrics", "shapes_probe",
     *more]
  )  # fmt: skip


def test_scores_have_the_names_that_reports_look_for(samples, prompts, tmp_path, capsys):
  out = tmp_path / "deep" / "scores.json"
  assert score(samples, prompts, "--json", str(out)) == 0
  tree = json.loads(out.read_text())
  assert list(tree["accuracy"]) == ["shape", "colour", "motion", "background", "all"]
  assert tree["protocol"]["count"] == 4 and tree["protocol"]["extractor_digest"]
  assert [s["index"] for s in tree["samples"]] == [0, 1, 2, 3]
  right = [s["right"]["colour"] for s in tree["samples"]]
  assert tree["accuracy"]["colour"] == sum(right) / 4
  printed = capsys.readouterr().out
  assert "4 samples of 8 x 16 x 16 at 4 fps" in printed and "background" in printed
  assert score(samples, prompts, "--compare", str(out)) == 0
  assert "+0.0%" in capsys.readouterr().out
  tree["scores"]["shapes_probe"]["protocol"]["extractor_digest"] = "another"
  out.write_text(json.dumps(tree))
  assert score(samples, prompts, "--compare", str(out)) == 2
  assert "extractor_digest: 'another' -> " in capsys.readouterr().err


def test_missing_samples_end_with_exit_code_3(samples, prompts, tmp_path, capsys):
  copy = tmp_path / "copy"
  copy.mkdir()
  for path in samples.glob("*.*"):
    (copy / path.name).write_bytes(path.read_bytes())
  (copy / "00002.mp4").unlink()
  assert score(copy, prompts) == 3
  assert "00002.mp4: missing" in capsys.readouterr().err
  assert score(copy, prompts, "--allow-missing") == 0
  assert "1 of them missing and counted as wrong" in capsys.readouterr().out


def test_metrics_are_listed(capsys):
  assert main(["eval", "--metrics", "help"]) == 0
  assert capsys.readouterr().out.startswith("shapes_probe  ")
  with pytest.raises(SystemExit) as end:
    main(["eval", "--help"])
  assert end.value.code == 0
  printed = capsys.readouterr().out
  assert re.search("shapes_probe +share of", printed) and "exit codes:" in printed


def test_exports_hold_the_average_and_give_the_samples(workdir, samples, tmp_path, capsys):
  summary = tmp_path / "export.json"
  for kind in ("safetensors", "stablehlo"):
    arguments = ["export", "--workdir", str(workdir), "--to", kind, "--out", str(tmp_path / kind)]
    assert main([*arguments, "--json", str(summary)]) == 0
  assert json.loads(summary.read_text())["parity"]["difference"] <= 1e-5
  config, loaded = load_safetensors(tmp_path / "safetensors")
  assert config["name"] == "tiny"
  jax.tree.map(np.testing.assert_array_equal, loaded, params(0))
  video = run_exported.load(tmp_path / "stablehlo")([f"prompt {i}" for i in range(4)], seed=3)
  latents = np.stack([np.load(samples / "latents" / f"{i:05}.npy") for i in range(4)])
  np.testing.assert_allclose(video, np.clip(latents, -1, 1), atol=1e-5)


def test_weights_that_are_not_finite_are_neither_sampled_nor_exported(prompts, tmp_path, capsys):
  bad = jax.tree.map(np.array, params(0))
  bad["network"]["patch_in"]["bias"][0] = np.nan
  workdir = write_run(tmp_path / "run", ema=bad)
  assert sample(workdir, prompts, tmp_path / "samples", "--count", "1") == 5
  for kind in ("safetensors", "stablehlo"):
    out = tmp_path / kind
    assert main(["export", "--workdir", str(workdir), "--to", kind, "--out", str(out)]) == 4
    assert not out.exists()
  assert "not finite: network/patch_in/bias" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "code", "message"),
  [
    (["sample", "--count", "11"], 2, "--count 11: .* holds 10 prompts"),
    (["sample", "--count", "0"], 2, "--count must be at least 1"),
    (["sample", "--batch-size", "0"], 2, "--batch-size must be at least 1"),
    (["sample", "--seed", "-1"], 2, "seed must lie in"),
    (["sample", "--steps", "0"], 2, "steps must be at least 1"),
    (["sample", "--guidance", "-1"], 2, "guidance_scale must be 0 or more"),
    (["sample", "--guidance", "nan"], 2, "guidance_scale must be 0 or more"),
    (["sample", "--step", "7"], 4, "no step 7"),
    (["export", "--to", "safetensors", "--steps", "3"], 2, "for --to stablehlo"),
  ],
)
def test_bad_arguments_are_one_line_and_an_exit_code(
  workdir, prompts, tmp_path, capsys, arguments, code, message
):
  common = ["--workdir", str(workdir), "--out", str(tmp_path / "out")]
  if arguments[0] == "sample":
    common += ["--prompts", str(prompts)]
  assert main([arguments[0], *common, *arguments[1:]]) == code
  error = capsys.readouterr().err
  assert re.search(message, error) and error.count("\n") == 1
  assert not (tmp_path / "out").exists()
