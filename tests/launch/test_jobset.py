"""The JobSet of a run holds against the schemas of JobSet, Job and Pod, and says what it should."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "tests/fixtures/jobset_schema.json").read_text())
TRAIN = ("--config", "c.py:30b", "--data", "/bucket/data", "--workdir", "/bucket/a run; $(date)")


def launch(*extra: str, topology: str = "v5p:4x4x8") -> subprocess.CompletedProcess:
  values = ("--name", "run-1", "--topology", topology, "--image", "gcr.io/p/vidgen:1")
  command = [sys.executable, "launch/jobset.py", *values, "--bucket", "b", *extra, "--", *TRAIN]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def manifest(*extra: str, topology: str = "v5p:4x4x8") -> dict:
  values = ["--name", "run-1", "--topology", topology, "--image", "i", "--bucket", "b", *extra]
  recipe = runpy.run_path(str(ROOT / "launch/jobset.py"))
  return recipe["manifest"](recipe["parse"]([*values, "--", *TRAIN]))


def job_and_pod(jobset: dict) -> tuple[dict, dict]:
  job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  return job, job["template"]["spec"]


def errors(jobset: dict) -> list[str]:
  return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(jobset)]


@pytest.mark.parametrize(
  "topology, accelerator, hosts, chips",
  [
    ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
    ("v5e:4x8", "tpu-v5-lite-podslice", 8, 4),
    ("v5p:4x4x8", "tpu-v5p-slice", 32, 4),
    ("v6e:16x16", "tpu-v6e-slice", 64, 4),
    ("v6e:1x1", "tpu-v6e-slice", 1, 1),
    ("v7x:4x4x4", "tpu7x", 16, 4),
  ],
)
def test_every_generation_is_valid_and_has_a_pod_for_each_host(topology, accelerator, hosts, chips):
  jobset = manifest("--slices", "2", topology=topology)
  assert errors(jobset) == []
  job, pod = job_and_pod(jobset)
  assert job["parallelism"] == job["completions"] == hosts
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == accelerator
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
  assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
  assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2


def test_the_schema_refuses_a_misspelt_key_and_a_wrong_type_at_every_depth():
  for spoil in (
    lambda m: m["spec"].update(failurePolcy={}),
    lambda m: job_and_pod(m)[0].update(parallelism="many"),
    lambda m: job_and_pod(m)[1].update(nodeselector={}),
    lambda m: job_and_pod(m)[1]["containers"][0].update(image=["a"]),
    lambda m: m["spec"]["failurePolicy"]["rules"][0].pop("action"),
  ):
    jobset = manifest()
    spoil(jobset)
    assert errors(jobset)


def test_a_preempted_pod_restarts_the_jobset_without_counting():
  jobset = manifest("--restarts", "3")
  job, pod = job_and_pod(jobset)
  codes = [
    rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule
  ]
  assert codes == [
    {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [143]}
  ]
  policy = jobset["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 3
  assert [(r["action"], r["onJobFailureReasons"]) for r in policy["rules"]] == [
    ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
  ]
  assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] == 300


def test_slices_know_each_other_only_where_there_are_several():
  def names(jobset):
    return {e["name"]: e.get("value") for e in job_and_pod(jobset)[1]["containers"][0]["env"]}

  assert not any(name.startswith("MEGASCALE") for name in names(manifest()))
  several = names(manifest("--slices", "4"))
  assert several["MEGASCALE_NUM_SLICES"] == "4"
  assert several["MEGASCALE_COORDINATOR_ADDRESS"] == "run-1-slice-0-0.run-1"
  assert several["JAX_COORDINATOR_ADDRESS"] == "run-1-slice-0-0.run-1:8476"


def test_arguments_reach_vidgen_as_they_were_given_and_no_shell_sees_them():
  printed = yaml.safe_load(launch().stdout)
  assert printed == {**manifest(), "spec": printed["spec"]}
  command = job_and_pod(printed)[1]["containers"][0]["command"]
  assert command == ["vidgen", "train", "--coordinator", "auto", *TRAIN]
  done = launch("--xpk", "--cluster", "c", "--slices", "2")
  words = shlex.split(done.stdout)
  assert words[:3] == ["xpk", "workload", "create"]
  assert "--tpu-type=v5p-4x4x8" in words and "--num-slices=2" in words
  assert "--restart-on-exit-codes=143" in words
  assert shlex.split(words[-1].removeprefix("--command=")) == command


@pytest.mark.parametrize(
  "topology, message",
  [
    ("v9:2x2", "unknown TPU 'v9'"),
    ("v5p:4x4", "has 3 sides"),
    ("v5e:4x4x4", "has 2 sides"),
    ("v5p:1x1x1", "hosts with 4"),
    ("v5p:0x4x4", "not of the form v5p:AxBxC"),
  ],
)
def test_a_topology_that_does_not_exist_is_refused_in_one_line(topology, message):
  done = launch(topology=topology)
  assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
