"""Who joins whom, from flags and from what Slurm, Open MPI and GKE put into the environment."""

import os
import socket
import subprocess
import sys

import pytest

from vidgen.errors import ConfigError
from vidgen.train.cluster import Group, find_group, join


def found(environment):
  group = find_group(environment)
  assert group is not None
  return group


STEP = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "node[012-015,20],other7",
  "SLURM_STEP_NUM_NODES": "4",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}


def test_a_process_of_no_cluster_is_alone():
  assert find_group({"HOME": "/"}) is None


def test_one_task_a_node_has_all_devices_of_the_node():
  assert find_group(STEP) == Group("Slurm", "node012:61441", 4, 2, None)


@pytest.mark.parametrize(
  ("nodes", "host"),
  [
    ("a1", "a1"),
    ("a1,b2", "a1"),
    ("n[3,5]", "n3"),
    ("gpu-[01-04]-ib", "gpu-01-ib"),
    ("x,y[1-2]", "x"),
  ],
)
def test_the_first_host_of_a_slurm_list_coordinates(nodes, host):
  assert found({**STEP, "SLURM_STEP_NODELIST": nodes}).coordinator == f"{host}:61441"


def test_several_tasks_on_a_node_have_one_device_each_unless_slurm_has_bound_them():
  packed = {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "2"}
  assert found(packed).devices == (2,)
  assert found({**packed, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}).devices == (2,)
  assert found({**packed, "CUDA_VISIBLE_DEVICES": "0"}).devices is None
  assert found({**packed, "SLURM_GPUS_PER_TASK": "2"}).devices is None


@pytest.mark.parametrize(
  "fewer",
  [
    {"SLURM_STEP_NUM_TASKS": "1"},  # `srun -n 1` within an allocation of four
    {"SLURM_STEP_NODELIST": None},  # the batch script itself, in an allocation of four
    {"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": None},
  ],
)
def test_a_job_of_one_task_joins_nobody(fewer):
  environment = {k: v for k, v in (STEP | fewer).items() if v is not None}
  assert find_group(environment) is None


def test_one_task_is_alone_even_when_told_to_look_for_others():
  assert find_group({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, coordinator="auto") is None
  assert find_group({"OMPI_COMM_WORLD_SIZE": "1"}, coordinator="auto") is None


def test_the_variables_of_jax_say_where_the_coordinator_is():
  assert found({**STEP, "JAX_COORDINATOR_PORT": "99"}).coordinator == "node012:99"
  assert found({**STEP, "JAX_COORDINATOR_ADDRESS": "c:98"}).coordinator == "c:98"


def test_ranks_of_open_mpi_are_joined_and_one_rank_is_alone():
  ranks = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}
  assert find_group(ranks) == Group("Open MPI")
  assert find_group(ranks | {"OMPI_COMM_WORLD_SIZE": "1"}) is None
  with pytest.raises(ConfigError, match="OMPI_MCA_orte_hnp_uri.*give --coordinator"):
    find_group({"OMPI_COMM_WORLD_SIZE": "2"})


def test_workers_of_a_tpu_slice_on_gke_are_joined_and_one_host_is_alone():
  assert find_group({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}) == Group("TPU")
  assert find_group({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) == Group("TPU")
  assert find_group({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None


def test_flags_come_before_the_environment():
  group = find_group(STEP, coordinator="host:1234", processes=2, process=1)
  assert group == Group("by flags", "host:1234", 2, 1)
  assert find_group(STEP, coordinator="auto") == found(STEP)
  assert find_group({}, coordinator="auto") == Group("found by jax")


@pytest.mark.parametrize(
  "flags",
  [
    {"coordinator": "host:1"},
    {"processes": 2, "process": 1},
    {"coordinator": "auto", "processes": 2, "process": 1},
    {"coordinator": "host", "processes": 2, "process": 1},
    {"coordinator": "host:1", "processes": 2, "process": 2},
  ],
)
def test_flags_that_do_not_say_who_joins_whom_are_refused(flags):
  with pytest.raises(ConfigError, match="--coordinator"):
    find_group({}, **flags)


def test_variables_that_make_no_sense_are_refused():
  with pytest.raises(ConfigError, match="ValueError.*give --coordinator"):
    find_group({**STEP, "SLURM_STEP_NUM_TASKS": "many"})
  with pytest.raises(ConfigError, match="KeyError.*SLURM_LOCALID"):
    find_group({k: v for k, v in {**STEP, "SLURM_STEP_NUM_NODES": "1"}.items() if "LOCAL" not in k})
  with pytest.raises(ConfigError, match="at least 1 second"):
    join(None, timeout_seconds=0)


def test_a_process_whose_fellows_do_not_come_says_so_and_ends_with_2(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  program = "import os; from vidgen.train.cluster import *; join(find_group(os.environ), "
  done = subprocess.run(
    [sys.executable, "-c", f"{program}timeout_seconds=2)"],
    env={**os.environ, **STEP, "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "127.0.0.1",
         "SLURM_JOB_ID": str(int(address.rpartition(":")[2]) - 61440 + 4096)},
    stderr=subprocess.PIPE, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert "process 0 of 4 (Slurm)" in done.stderr and "not all are there after 2 s" in done.stderr
