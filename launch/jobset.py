"""A run on TPU slices of GKE, as a JobSet manifest or as the same run's `xpk` command.

  python launch/jobset.py --name NAME --topology v5p:4x4x8 --image IMAGE --bucket BUCKET \\
    -- --config FILE.py --data /bucket/DIR --workdir /bucket/DIR | kubectl apply -f -

  python launch/jobset.py --xpk --cluster CLUSTER ... -- ...      prints `xpk workload create ...`

What follows `--` goes to `vidgen train`. The bucket is mounted at /bucket. A pod that is told to go
saves and leaves with 143; then the whole JobSet starts again and resumes, as often as that happens.
Any other failure counts against --restarts.
"""

import argparse
import math
import re
import shlex
import sys
from dataclasses import dataclass

import yaml

PREEMPTED = 143  # exit code of vidgen: a termination signal came, the state was saved
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
PORT = 8476  # where jax's coordinator listens
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")  # pod names add to it, and end at 63


@dataclass(frozen=True)
class Generation:
  """How GKE names a generation of TPUs, and how its chips lie in hosts.

  `accelerator` is the node label; `machine` the machine type with four chips, which multi-host
  slices are made of; `single` that with one chip, if there is one; `xpk` its name there.
  """

  accelerator: str
  machine: str
  single: str
  dimensions: int
  xpk: str


# cloud.google.com/kubernetes-engine/docs/concepts/tpus; xpk 1.16, core/system_characteristics.py
GENERATIONS = {
  "v4": Generation("tpu-v4-podslice", "ct4p-hightpu-4t", "", 3, "v4"),
  "v5e": Generation("tpu-v5-lite-podslice", "ct5lp-hightpu-4t", "ct5lp-hightpu-1t", 2, "v5litepod"),
  "v5p": Generation("tpu-v5p-slice", "ct5p-hightpu-4t", "", 3, "v5p"),
  "v6e": Generation("tpu-v6e-slice", "ct6e-standard-4t", "ct6e-standard-1t", 2, "v6e"),
  "v7x": Generation("tpu7x", "tpu7x-standard-4t", "tpu7x-standard-1t", 3, "tpu7x"),
}


@dataclass(frozen=True)
class Slice:
  """One slice: `hosts` hosts with `chips_per_host` chips each."""

  generation: Generation
  topology: str
  hosts: int
  chips_per_host: int
  machine: str


def parse_topology(text: str) -> Slice:
  """The slice that a text such as v5p:4x4x8 names; raises ValueError if there is none."""
  name, _, topology = text.partition(":")
  generation = GENERATIONS.get(name)
  if generation is None:
    raise ValueError(f"unknown TPU {name!r} in {text!r}; known: {', '.join(GENERATIONS)}")
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology):
    raise ValueError(f"{text!r} is not of the form {name}:AxB{'xC' * (generation.dimensions - 2)}")
  sides = [int(side) for side in topology.split("x")]
  if len(sides) != generation.dimensions:
    raise ValueError(f"a topology of {name} has {generation.dimensions} sides, {text!r} does not")
  chips = math.prod(sides)
  if chips == 1 and generation.single:
    return Slice(generation, topology, 1, 1, generation.single)
  if chips % 4:
    raise ValueError(f"{text!r} has {chips} chips; slices of {name} are made of hosts with 4")
  return Slice(generation, topology, chips // 4, 4, generation.machine)


def manifest(args: argparse.Namespace) -> dict:
  """The JobSet, as plain data."""
  slice_ = parse_topology(args.topology)
  coordinator = f"{args.name}-slice-0-0.{args.name}"  # the first pod, in the JobSet's own service
  job_index = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}}
  environment: list[dict] = [
    {"name": "JAX_PLATFORMS", "value": "tpu,cpu"},
    {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{coordinator}:{PORT}"},
  ]
  if args.slices > 1:
    environment += [
      {"name": "MEGASCALE_NUM_SLICES", "value": str(args.slices)},
      {"name": "MEGASCALE_SLICE_ID", "valueFrom": job_index},
      {"name": "MEGASCALE_COORDINATOR_ADDRESS", "value": coordinator},
    ]
  container = {
    "name": "vidgen",
    "image": args.image,
    "command": ["vidgen", "train", "--coordinator", "auto", *args.train],
    "env": environment,
    "ports": [{"containerPort": PORT}],
    "securityContext": {"privileged": True},  # TPU memory is locked
    "resources": {"limits": {"google.com/tpu": slice_.chips_per_host}},
    "volumeMounts": [{"name": "bucket", "mountPath": "/bucket"}],
  }
  bucket = {"bucketName": args.bucket, "mountOptions": "implicit-dirs"}
  pod = {
    "hostNetwork": True,  # the data-centre network at full speed
    "dnsPolicy": "ClusterFirstWithHostNet",
    "restartPolicy": "Never",
    "serviceAccountName": args.service_account,
    "terminationGracePeriodSeconds": args.grace,
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": slice_.generation.accelerator,
      "cloud.google.com/gke-tpu-topology": slice_.topology,
      "node.kubernetes.io/instance-type": slice_.machine,
    },
    "containers": [container],
    "volumes": [
      {
        "name": "bucket",
        "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket},
      }
    ],
  }
  gone = [  # the pod saved and left, or its node went away: neither is a fault of the run
    {
      "action": "FailJob",
      "onExitCodes": {"containerName": "vidgen", "operator": "In", "values": [PREEMPTED]},
    },
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
  ]
  job = {
    "parallelism": slice_.hosts,
    "completions": slice_.hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,  # one pod gone, and all of them start anew
    "podFailurePolicy": {"rules": gone},
    "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": pod},
  }
  rule = {
    "name": "preempted",
    "action": "RestartJobSetAndIgnoreMaxRestarts",
    "onJobFailureReasons": ["PodFailurePolicy"],
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {
      "name": args.name,
      "namespace": args.namespace,
      "annotations": {EXCLUSIVE: "cloud.google.com/gke-nodepool"},  # one Job a slice
    },
    "spec": {
      "network": {"enableDNSHostnames": True, "subdomain": args.name},
      "coordinator": {"replicatedJob": "slice", "jobIndex": 0, "podIndex": 0},
      "failurePolicy": {"maxRestarts": args.restarts, "rules": [rule]},
      "replicatedJobs": [{"name": "slice", "replicas": args.slices, "template": {"spec": job}}],
    },
  }  # fmt: skip


def xpk(args: argparse.Namespace) -> list[str]:
  """The words of the `xpk workload create` for the same values.

  The bucket is attached to the cluster beforehand: xpk storage attach NAME --type=gcsfuse
  --bucket=BUCKET --mount-point=/bucket --auto-mount=true ...
  """
  slice_ = parse_topology(args.topology)
  return [
    "xpk", "workload", "create", f"--cluster={args.cluster}", f"--workload={args.name}",
    f"--tpu-type={slice_.generation.xpk}-{slice_.topology}", f"--num-slices={args.slices}",
    f"--docker-image={args.image}", f"--max-restarts={args.restarts}",
    f"--restart-on-exit-codes={PREEMPTED}", f"--termination-grace-period-seconds={args.grace}",
    f"--command={shlex.join(['vidgen', 'train', '--coordinator', 'auto', *args.train])}",
  ]  # fmt: skip


def parse(words: list[str]) -> argparse.Namespace:
  """The values; ends with 2 and one line if one of them is bad."""
  parser = argparse.ArgumentParser(description="Print a JobSet, or the xpk command, for a run.")
  parser.add_argument("--name", required=True, help="of the JobSet: at most 32 of a-z 0-9 -")
  parser.add_argument("--topology", required=True, metavar="GENERATION:AxBxC", help="of a slice")
  parser.add_argument("--slices", type=int, default=1, help="(default: %(default)s)")
  parser.add_argument("--image", required=True, help="with vidgen and jax[tpu] installed")
  parser.add_argument("--bucket", help="Cloud Storage bucket, mounted at /bucket")
  parser.add_argument("--namespace", default="default", help="(default: %(default)s)")
  parser.add_argument("--service-account", default="default", help="that may use the bucket")
  parser.add_argument("--grace", type=int, default=300, help="seconds to save (default: 300)")
  parser.add_argument("--restarts", type=int, default=10, help="after faults (default: 10)")
  parser.add_argument("--xpk", action="store_true", help="print the xpk command instead")
  parser.add_argument("--cluster", help="of GKE, for --xpk")
  parser.add_argument("train", nargs="+", help="after --: arguments of vidgen train")
  args = parser.parse_args(words)
  if not LABEL.fullmatch(args.name):
    parser.error(f"--name {args.name!r} must be at most 32 of a-z, 0-9 and -")
  if args.slices < 1:
    parser.error("--slices must be at least 1")
  needed = "cluster" if args.xpk else "bucket"
  if not getattr(args, needed):
    parser.error(f"--{needed} is missing")
  try:
    parse_topology(args.topology)
  except ValueError as error:
    parser.error(f"--topology: {error}")
  return args


def main() -> None:
  """Prints one or the other."""
  args = parse(sys.argv[1:])
  print(shlex.join(xpk(args)) if args.xpk else yaml.safe_dump(manifest(args), sort_keys=False))


if __name__ == "__main__":
  main()
