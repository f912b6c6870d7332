"""A real Slurm cluster of one machine, and on it a run that is preempted, queued again and resumed.

  apt-get install slurm-wlm munge
  python launch/slurm_local.py [--out DIR] [--seconds N] [--by priority|requeue] [--tasks N]

Starts munged, slurmctld and slurmd as the current user on free ports of 127.0.0.1, with all their
files in a temporary folder, and submits launch/slurm.sbatch as a job of two CPU tasks. Preempts it
after some steps, by a job of a higher partition or by `scontrol requeue`, and waits until it has
been queued again, has resumed and is COMPLETED. Then all is taken down. Ends with 0 if all of
that was seen, and otherwise with 1, the logs and what was missing.
"""

import argparse
import contextlib
import getpass
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
SMALL = {  # a run of seconds
  "stage.fields.layers": 1,
  "stage.fields.width": 32,
  "stage.fields.heads": 2,
  "stage.fields.mlp_width": 64,
  "stage.fields.scan_unroll": 1,
  "train.batch_size": 4,
  "train.log_every": 1,
  "train.eval_every": 0,
  "train.sheet_every": 0,
  "train.save_every": 100_000,  # so that what is resumed was saved because of the signal
}

# cred_expire: a requeued job waits until credentials of its last start have run out.
SLURM_CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=120
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=120 MaxTime=60
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF MaxTime=60
"""


def main() -> int:
  """Runs the whole life of one job; returns 0 if it went as it should."""
  parser = argparse.ArgumentParser(description="Preempt and resume a run on a real local Slurm.")
  parser.add_argument("--out", type=Path, help="keep data, run and logs here")
  parser.add_argument("--seconds", type=float, default=600, help="limit (default: %(default)s)")
  parser.add_argument("--steps", type=int, default=60, help="of the run (default: %(default)s)")
  parser.add_argument("--tasks", type=int, default=2, help="processes (default: %(default)s)")
  parser.add_argument("--by", choices=("priority", "requeue"), default="priority")
  args = parser.parse_args()
  missing = [name for name in PROGRAMS if not shutil.which(name)]
  if missing:
    print(f"not installed: {', '.join(missing)}; apt-get install slurm-wlm munge", file=sys.stderr)
    return 2
  with contextlib.ExitStack() as stack:
    out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vidgen-slurm-")))
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.seconds
    try:
      data = build_data(out, end=end)
      cluster = stack.enter_context(start_cluster(out / "cluster", cpus=args.tasks, end=end))
      preempt_and_resume(cluster, out, data=data, args=args, end=end)
    except (Unmet, subprocess.SubprocessError) as error:
      for log in sorted(out.glob("cluster/*.log")) + sorted(out.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
      print(f"slurm_local: {error}", file=sys.stderr)
      return 1
  return 0


class Unmet(Exception):
  """Something that should have happened has not."""


def build_data(out: Path, *, end: float) -> Path:
  """64 clips of ShapesWorld, unless they are there."""
  data = out / "data"
  command = [sys.executable, "-m", "vidgen.cli", "data", "build", "data/shapes_world.py:single"]
  subprocess.run(
    [*command, "--out", str(data), "--count", "64"],
    cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=end - time.monotonic(),
  )  # fmt: skip
  return data


class Cluster:
  """Talks to the cluster whose configuration is in `folder`."""

  def __init__(self, folder: Path):
    self.environment = {
      **os.environ,
      "SLURM_CONF": str(folder / "slurm.conf"),
      "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
      "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }

  def ask(self, *command: str) -> str:
    """What a Slurm command prints."""
    done = subprocess.run(
      command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    if done.returncode:
      raise Unmet(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()

  def job(self, number: str) -> dict[str, str]:
    """The fields of a job as Slurm gives them, such as JobState and Restarts."""
    words = self.ask("scontrol", "--oneliner", "show", "job", number).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


@contextlib.contextmanager
def start_cluster(folder: Path, *, cpus: int, end: float) -> Iterator[Cluster]:
  """munged, slurmctld and slurmd, all of them ended at the end, with what they have started."""
  shutil.rmtree(folder, ignore_errors=True)
  for name in ("state", "spool"):
    (folder / name).mkdir(parents=True)
  key = folder / "munge.key"
  key.touch(mode=0o600)
  key.write_bytes(secrets.token_bytes(128))
  names = {"folder": folder, "host": socket.gethostname().split(".")[0], "cpus": cpus}
  ports = dict(zip(("controller", "daemon"), free_ports(2), strict=True))
  conf = SLURM_CONF.format(user=getpass.getuser(), **names, **ports)
  (folder / "slurm.conf").write_text(conf)
  cluster = Cluster(folder)
  munge = ["munged", "--foreground", "--force", "--key-file", str(key)]
  munge += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
  munge += [f"--seed-file={folder}/munge.seed"]
  daemons = []
  try:
    for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
      with (folder / f"{command[0]}-output.log").open("wb") as log:
        daemons.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))
      if command is munge:
        wait_for("munged", (folder / "munge.socket").exists, end=end, alive=daemons)
    node = names["host"]
    wait_for(
      "the node to be idle", lambda: "State=IDLE" in quietly(cluster, "show", "node", node),
      end=end, alive=daemons,
    )  # fmt: skip
    print(f"a Slurm cluster of one machine, {cpus} CPUs, is up", flush=True)
    yield cluster
  finally:
    with contextlib.suppress(Unmet, subprocess.SubprocessError):
      cluster.ask("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
      wait_for("no job", lambda: not cluster.ask("squeue", "-h"), end=time.monotonic() + 20)
    for daemon in reversed(daemons):
      daemon.send_signal(signal.SIGTERM)
      try:
        daemon.wait(10)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def quietly(cluster: Cluster, *command: str) -> str:
  """The answer of scontrol, or nothing while the controller is not up."""
  with contextlib.suppress(Unmet):
    return cluster.ask("scontrol", *command)
  return ""


def free_ports(count: int) -> list[int]:
  """Different ports that nothing listens on."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
    return [s.getsockname()[1] for s in sockets]


def wait_for(
  what: str, seen: Callable[[], bool], *, end: float, alive: list[subprocess.Popen] | None = None
) -> None:
  """Waits until `seen()`; raises Unmet at `end`, or when a process of `alive` has ended."""
  while not seen():
    ended = [process for process in alive or () if process.poll() is not None]
    if ended:
      raise Unmet(f"{ended[0].args[0]} has ended with {ended[0].returncode}")  # type: ignore[index] # a list
    if time.monotonic() > end:
      raise Unmet(f"waited for {what} to the time limit; --seconds gives it more")
    time.sleep(0.25)


def preempt_and_resume(
  cluster: Cluster, out: Path, *, data: Path, args: argparse.Namespace, end: float
) -> None:
  """Submits the recipe, preempts it, and sees it resume and complete.

  Raises:
    Unmet: it went otherwise.
  """
  workdir, log = out / "run", out / "job.log"
  if workdir.exists():
    raise Unmet(f"{workdir} exists; remove it or give another --out")
  overrides = [f"--config.{key}={value}" for key, value in SMALL.items()]
  job = cluster.ask(
    "sbatch", "--parsable", "--partition=low", "--nodes=1", f"--ntasks-per-node={args.tasks}",
    "--gres=none", "--cpus-per-task=1", "--mem=0", "--time=30", f"--output={log}",
    "launch/slurm.sbatch", "--config", "configs/movie_gen/t2v_256.py:tiny", "--data", str(data),
    "--workdir", str(workdir), f"--config.train.steps={args.steps}", *overrides,
  )  # fmt: skip
  print(f"job {job}: launch/slurm.sbatch with {args.tasks} tasks", flush=True)

  def state() -> str:
    found = cluster.job(job)["JobState"]
    if found in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"):
      raise Unmet(f"job {job} is {found}")
    return found

  wait_for("3 steps", lambda: bool(state()) and last_step(workdir) >= 3, end=end)
  print(f"at step {last_step(workdir)}: preempting it by {args.by}", flush=True)
  if args.by == "priority":
    cluster.ask(
      "sbatch", "--parsable", "--partition=high", "--exclusive", "--time=5",
      f"--output={out}/urgent.log", "--wrap", "echo urgent work; sleep 3",
    )  # fmt: skip
  else:
    cluster.ask("scontrol", "requeue", job)
  wait_for("the job to be queued again", lambda: cluster.job(job)["Restarts"] != "0", end=end)
  print("queued again", flush=True)
  wait_for("the job to end", lambda: state() == "COMPLETED", end=end)
  fields = cluster.job(job)
  print(f"job {job} is {fields['JobState']}, restarts {fields['Restarts']}", flush=True)
  text = log.read_text()
  saved = re.search(r"step (\d+) is saved", text)
  if saved is None or f"at step {saved[1]}\n" not in text:
    raise Unmet(f"the job has not resumed at the step it saved; see {log}")
  if last_step(workdir) != args.steps:
    raise Unmet(f"the last step in train.jsonl is {last_step(workdir)}, not {args.steps}")
  print(f"saved and resumed at step {saved[1]} and went on to step {args.steps}")


def last_step(workdir: Path) -> int:
  """The last step in the log of the run; 0 if there is none yet."""
  with contextlib.suppress(FileNotFoundError):
    lines = (workdir / "train.jsonl").read_bytes().split(b"\n")[:-1]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)
  return 0


if __name__ == "__main__":
  sys.exit(main())
