"""Joining the processes of a run: by flags, or by what a known cluster says in the environment.

Slurm (`srun` with several tasks), Open MPI (`mpirun`) and the workers of a TPU slice on GKE are
joined without being asked. A TPU slice on Compute Engine and an indexed Kubernetes job are found
with `--coordinator auto`, because asking them costs a request.
"""

import contextlib
import dataclasses
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from vidgen.errors import ConfigError

HEARTBEAT = 100  # seconds, jax's default
TIMEOUT = 300
PORTS = range(61440, 65536)  # where a job's number picks one


@dataclasses.dataclass(frozen=True)
class Group:
  """Who is to be joined: what `jax.distributed.initialize` is told; None it finds out by itself.

  devices: those of this machine that are this process's; None means all.
  """

  name: str
  coordinator: str | None = None
  processes: int | None = None
  process: int | None = None
  devices: tuple[int, ...] | None = None

  def __str__(self) -> str:
    who = "a process" if self.process is None else f"process {self.process} of {self.processes}"
    at = f" at {self.coordinator}" if self.coordinator else ""
    return f"{who} ({self.name}){at}"


def find_group(
  environment: Mapping[str, str],
  *,
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> Group | None:
  """The group that flags or, without any, the environment speak of; None: this process is alone.

  Raises:
    ConfigError: only some of the three flags are given, or a cluster's variables make no sense.
  """
  given = (coordinator, processes, process)
  if coordinator == "auto" and processes is process is None:
    alone = "SLURM_STEP_NODELIST" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    return _found(environment) or (None if alone else Group("found by jax"))
  if any(value is not None for value in given):
    if coordinator in (None, "auto") or processes is None or process is None:
      raise ConfigError(
        "--coordinator HOST:PORT, --processes and --process go together; on a known cluster give "
        "none of them, or --coordinator auto"
      )
    if not re.fullmatch(r".+:\d+", coordinator) or not 0 <= process < processes:
      raise ConfigError(
        f"--coordinator {coordinator} --processes {processes} --process {process}: a coordinator "
        "is HOST:PORT, and processes count from 0"
      )
    return Group("by flags", coordinator, processes, process)
  return _found(environment)


def _found(environment: Mapping[str, str]) -> Group | None:
  try:
    return _slurm(environment) or _mpi(environment) or _tpu(environment)
  except (KeyError, ValueError) as error:
    raise ConfigError(
      f"the environment of this cluster is not as known ({type(error).__name__}: {error}); give "
      "--coordinator HOST:PORT, --processes and --process"
    ) from error


def _slurm(environment: Mapping[str, str]) -> Group | None:
  """A job step of several tasks; batch scripts and one-task steps are alone."""
  nodes = environment.get("SLURM_STEP_NODELIST")
  count = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
  if nodes is None or "SLURM_PROCID" not in environment or int(count) < 2:
    return None
  host = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
  if host is None:
    raise ValueError(f"SLURM_STEP_NODELIST={nodes}")
  port = environment.get(
    "JAX_COORDINATOR_PORT", PORTS[int(environment["SLURM_JOB_ID"]) % len(PORTS)]
  )
  address = f"{''.join(part or '' for part in host.groups())}:{port}"
  # all devices that it sees are a task's own where it is alone on its node, or bound to them
  own = (
    int(environment.get("SLURM_STEP_NUM_NODES", "0")) == int(count)
    or "SLURM_GPUS_PER_TASK" in environment
    or "," not in environment.get("CUDA_VISIBLE_DEVICES", ",")
  )
  return Group(
    "Slurm",
    environment.get("JAX_COORDINATOR_ADDRESS", address),
    int(count),
    int(environment["SLURM_PROCID"]),
    None if own else (int(environment["SLURM_LOCALID"]),),
  )


def _mpi(environment: Mapping[str, str]) -> Group | None:
  """A job of `mpirun` with several ranks, whose launcher's address jax reads."""
  if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) < 2:
    return None
  if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 does not say where it was launched
    raise KeyError("OMPI_MCA_orte_hnp_uri")
  return Group("Open MPI")


def _tpu(environment: Mapping[str, str]) -> Group | None:
  """Workers of a TPU slice, or of several slices, whose addresses the environment lists."""
  listed = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
  if "," in listed or int(environment.get("MEGASCALE_NUM_SLICES") or "1") > 1:
    return Group("TPU")
  return None


def join(
  group: Group | None, *, heartbeat_seconds: int = HEARTBEAT, timeout_seconds: int = TIMEOUT
) -> None:
  """Joins the group, before anything else is done with jax.

  A process that gives no sign of life for `heartbeat_seconds` ends all others.

  Raises:
    ConfigError: it cannot be joined. If the others do not come within `timeout_seconds`, jax would
      abort; so the message is printed, and the process ends with the same exit code, at once.
  """
  if min(heartbeat_seconds, timeout_seconds) < 1:
    raise ConfigError("--heartbeat-timeout and --join-timeout must be at least 1 second")
  if group is None:
    _check_alone()
    return
  options: dict[str, Any] = {"local_device_ids": group.devices}
  if group.coordinator is not None:
    options["cluster_detection_method"] = "deactivate"
  with _at_most(timeout_seconds, group):
    try:
      jax.distributed.initialize(
        group.coordinator,
        num_processes=group.processes,
        process_id=group.process,
        initialization_timeout=2 * timeout_seconds + 60,  # ours comes first
        heartbeat_timeout_seconds=heartbeat_seconds,
        **options,
      )
    except Exception as error:
      raise ConfigError(_failed(group, str(error).splitlines()[0])) from error


def _failed(group: Group, why: str) -> str:
  return (
    f"{group} cannot join the others: {why}; start every process with the same command, and see "
    "that all can reach the coordinator (--coordinator, --join-timeout)"
  )


@contextlib.contextmanager
def _at_most(seconds: int, group: Group) -> Iterator[None]:
  def give_up() -> None:
    message = _failed(group, f"not all are there after {seconds} s")
    print(f"vidgen train: {message}", file=sys.stderr, flush=True)
    os._exit(ConfigError.exit_code)

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _check_alone() -> None:
  """A TPU runtime knows of its neighbours by itself, yet preemption and checkpoints need more.

  Raises:
    ConfigError: it sees other processes, which were not joined.
  """
  if jax.process_count() > 1 and not jax.distributed.is_initialized():
    raise ConfigError(
      f"this is one of {jax.process_count()} processes of a TPU slice: give --coordinator auto"
    )
