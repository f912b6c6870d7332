"""`vidgen plan`: a small config for absent devices; what is on record; what does not fit."""

import datetime
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from vidgen.cli.recorded_plans import arguments, drift, read_entries, table
from vidgen.config import load_config
from vidgen.errors import ConfigError
from vidgen.train.experiment import resolve
from vidgen.train.plan import bytes_needed, candidates, changed, remedies

ROOT = Path(__file__).resolve().parent.parent.parent
HAVE = {
  "tpu": importlib.util.find_spec("libtpu") is not None,
  "gpu": importlib.util.find_spec("jax_cuda12_plugin") is not None,
}
PATIENCE = 300  # seconds of compiling; what takes longer is for `make soak`
RECORDED = sorted(ROOT.glob("configs/*/*.plans.json"))
SMALL = [
  "--config", "configs/movie_gen/t2v_256.py:1b", "--config.stage.fields.layers=2",
  "--config.stage.fields.width=256", "--config.stage.fields.heads=2",
  "--config.stage.fields.mlp_width=512",
  "--config.train.batch_size=4", "--config.train.accumulate=1",
  "--config.train.unsharded_tolerance=1.0",
  "--bucket", "image",
]  # fmt: skip


def plan(*words):
  """The exit code, output and errors of `vidgen plan`, in a process that has no devices yet."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  done = subprocess.run(
    [sys.executable, "-m", "vidgen.cli", "plan", *map(str, words)],
    capture_output=True, text=True, cwd=ROOT, env=environment, timeout=1800, check=False,
  )  # fmt: skip
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  ("topology", "kind"), [("v5e:2x2", "tpu"), ("2*v5e:2x2", "tpu"), ("a100-80gb:4", "gpu")]
)
def test_a_small_config_is_planned(topology, kind, tmp_path):
  if not HAVE[kind]:
    pytest.skip("its compiler is not installed (make compilers)")
  out = tmp_path / "plan.json"
  mesh = ["--config.mesh.context=2", "--config.mesh.tensor=1"]
  code, text, errors = plan(*SMALL, *mesh, "--topology", topology, "--json", out)
  assert code == 0, errors
  got = json.loads(out.read_text())
  slices = 2 if topology.startswith("2*") else 1
  assert got["devices"] == 4 * slices and got["mesh"]["data"] == slices
  assert got["fits"] and got["parameters"] > 1e6
  assert 0 < got["peak_bytes_per_device"] < got["hbm_bytes_per_device"]
  # state: float32 parameters, average and two moments over fsdp 2
  assert got["state_bytes_per_device"]["parameters"] >= got["parameters"] * 4 / 2
  assert got["state_bytes_per_device"]["optimizer"] == pytest.approx(
    2 * got["state_bytes_per_device"]["parameters"], rel=0.01
  )
  assert 1.0 < got["executed_flops"] / got["model_flops"] < 1.5
  assert got["collectives"]["all-gather"]["bytes"] > 0
  largest = max(
    got["compute_seconds"], got["memory_seconds"], *got["communication_seconds"].values()
  )
  assert got["roofline_seconds"] == pytest.approx(largest)
  assert 0 < got["mfu_bound"] < 1
  assert "fits:" in text and "attention" in text


def test_a_plan_that_does_not_fit_says_why_and_what_would(tmp_path):
  if not HAVE["gpu"]:
    pytest.skip("its compiler is not installed (make compilers)")
  out = tmp_path / "plan.json"
  large = [
    "--config", "configs/movie_gen/t2v_256.py:1b", "--config.stage.fields.layers=2",
    "--config.train.batch_size=768", "--config.train.accumulate=1",
    "--config.stage.fields.remat=none", "--topology", "a100-80gb:8", "--json", out,
  ]  # fmt: skip
  code, text, errors = plan(*large)
  assert code == 0, errors
  got = json.loads(out.read_text())
  assert not got["fits"] and got["peak_bytes_per_device"] > got["hbm_bytes_per_device"]
  assert "DOES NOT FIT" in text and "exceeds the" in got["problem"]
  assert got["remedy"] == "--config.train.accumulate=96"


def test_a_sweep_ranks_what_fits(tmp_path):
  if not HAVE["gpu"]:
    pytest.skip("its compiler is not installed (make compilers)")
  out = tmp_path / "plans.json"
  words = ["--topology", "a100-80gb:2", "--sweep", "--most", "1", "--json", out]
  code, text, errors = plan(*SMALL, *words)
  assert code == 0, errors
  plans = json.loads(out.read_text())
  assert {p["remat"] for p in plans} == {"full", "attention", "names"}
  seconds = [p["roofline_seconds"] for p in plans]
  assert all(p["fits"] for p in plans) and seconds == sorted(seconds)
  assert plans[0]["flags"] in text and "3 fit; the fastest bound first:" in text


@pytest.mark.parametrize("kind", HAVE)
@pytest.mark.parametrize(
  "long", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["minutes", "longer"]
)
def test_recorded_plans_are_still_what_they_were(kind, long):
  """One for each kind of device, another every day; `make plans` writes all anew."""
  entries = [
    (path, index)
    for path in RECORDED
    for index, entry in enumerate(read_entries(path))
    if (kind == "tpu") == entry["topology"].lstrip("0123456789*").startswith("v")
    and (entry["plan"]["compile_seconds"] > PATIENCE) == long
  ]
  assert entries
  if not HAVE[kind]:
    pytest.skip("its compiler is not installed (make compilers)")
  path, index = entries[datetime.date.today().toordinal() % len(entries)]
  code, text, errors = plan("--recorded", path, "--check", "--only", index)
  assert code == 0, text + errors


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_full_size_variant_is_planned_for_the_slice_it_names(path):
  config = path.with_name(path.name.replace(".plans.json", ".py"))
  entries = read_entries(path)
  for variant in runpy.run_path(str(config))["VARIANTS"]:
    if variant.startswith("tiny"):
      continue
    experiment = resolve(load_config(f"{config}:{variant}"))
    own = [
      entry
      for entry in entries
      if (entry["variant"], entry["topology"]) == (variant, experiment.topology)
      and not entry["overrides"]
    ]
    assert own, f"{variant} has no plan for {experiment.topology}"
  for entry in entries:
    assert entry["plan"]["fits"], entry["topology"]
    assert entry["plan"]["topology"] == entry["topology"]
    assert entry["plan"]["peak_bytes_per_device"] <= entry["plan"]["hbm_bytes_per_device"]


def test_the_readme_has_the_plans_on_record():
  assert table(RECORDED) in (ROOT / "README.md").read_text()


def test_drift_is_told():
  was = read_entries(RECORDED[0])[0]["plan"]
  assert list(drift(was, was)) == []
  assert list(drift({}, was)) == ["nothing is recorded"]
  more = {**was, "parameters": was["parameters"] + 1, "mfu_bound": was["mfu_bound"] * 1.03}
  found = "\n".join(drift(was, more))
  assert "parameters: recorded" in found and "mfu_bound" in found
  slightly = {**was, "peak_bytes_per_device": int(was["peak_bytes_per_device"] * 1.01)}
  assert list(drift(was, slightly)) == []
  assert list(drift({k: v for k, v in was.items() if k != "remat"}, was)) == [
    "other figures: remat"
  ]


def test_an_entry_is_a_command(tmp_path):
  path = tmp_path / "x.plans.json"
  entry = {
    "variant": "1b", "topology": "v5e:8x8", "overrides": {"mesh.context": 2}, "bucket": "a",
    "effort": -1,
  }  # fmt: skip
  path.write_text(json.dumps([entry]))
  assert arguments(path, read_entries(path)[0]) == [
    "--config", f"{tmp_path}/x.py:1b", "--topology", "v5e:8x8", "--bucket", "a",
    "--effort", "-1", "--config.mesh.context=2",
  ]  # fmt: skip
  path.write_text("[{}]")
  with pytest.raises(ConfigError, match="entry 0 has no variant"):
    read_entries(path)


def test_bad_usage_is_refused():
  assert plan("--topology", "v5e:2x2")[0] == 2
  code, _, errors = plan("--config", "configs/movie_gen/t2v_256.py:tiny")
  assert code == 2 and "names no topology" in errors
  code, _, errors = plan(*SMALL, "--topology", "v5e:2x2", "--effort", "2")
  assert code == 2 and "--effort must lie in" in errors


def test_remedies_and_candidates_divide_the_devices():
  experiment = resolve(load_config("configs/movie_gen/t2v_768.py:30b"))
  from vidgen.dist.topology import parse_topology

  found = candidates(experiment, parse_topology("v5p:4x4x8"), 128)
  assert found[0]["mesh.context"] * found[0]["mesh.tensor"] == 1
  for changes in found:
    option = changed(experiment, changes)
    shards = 128 // (option.mesh.context * option.mesh.tensor)
    assert option.train.batch_size == option.train.accumulate * shards
  twice = parse_topology("2*v5p:4x4x8")
  for changes in remedies(experiment, 256, slices=2):
    option = changed(experiment, changes)
    shards = 256 // (option.mesh.context * option.mesh.tensor)
    assert option.train.batch_size % (option.train.accumulate * shards) == 0, changes
  assert candidates(experiment, twice, 256)[0]["train.accumulate"] == 6
  wasteful = changed(experiment, {"train.accumulate": 1, "stage.fields.remat": "none"})
  changes = list(remedies(wasteful, 128))
  assert changes[0] == {"train.accumulate": 96}
  assert changes[1] == {"train.accumulate": 96, "stage.fields.remat": "full"}
  assert changes[-1]["mesh.context"] == 32


def test_what_the_compiler_says_of_memory_is_read():
  assert bytes_needed("HLO temporaries (379.16G) exceeds available HBM (95.74G).") == 379.16 * 2**30
  assert bytes_needed("Used 108.3G of 95.74G hbm. Exceeded hbm capacity") == 108.3 * 2**30
  # of another memory it says nothing of use
  assert bytes_needed("Scoped allocation with size 20.00M and limit 16.00M exceeded vmem") == 0
  assert bytes_needed("Used 17.5M of 16.0M vmem") == 0


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_a_step_ends_before_the_watchdog_does_and_checkpoints_are_hours_apart(path):
  config = path.with_name(path.name.replace(".plans.json", ".py"))
  for entry in read_entries(path):
    if entry["overrides"] or entry.get("program") == "sample":
      continue
    experiment = resolve(load_config(f"{config}:{entry['variant']}"))
    if entry["topology"] == experiment.topology:
      step = entry["plan"]["roofline_seconds"] / 0.4  # at 40% of what the bound is made of
      assert 3 * step < experiment.train.hang_seconds
      assert experiment.train.save_every * step < 4 * 3600
