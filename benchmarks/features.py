"""I3D features of clips: vidgen's extractor against the same network in PyTorch, on the same cores.

  pip install -e '.[oracle]'      # torch (CPU)
  python -m vidgen.dist.flags python benchmarks/features.py --json FILE

Both turn uint8 clips of 16 frames into the 400 logits of Fréchet video distance by the reference
convention: a resize to 224 x 224 (TensorFlow 1's), values to [-1, 1], I3D in float32. PyTorch's is
the twin that the parity tests have (`tests/fixtures/make_feature_networks.py`), its resize
`interpolate`, which reads as many pixels. Works: "64", clips of 64 x 64; "224", of 224 x 224.

Every entrant is a process of its own, pinned to the same cores, and makes one step when it is told
to, so that they take turns and a machine whose speed drifts treats them alike; ratios are those of
the medians, by the clock and of the CPU time, which other work on the machine moves less. Memory is
the peak of the process, imports and compiler included.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wan import Step, cpu_model, peak_rss, versions

WORKS = ("64", "224")
ENTRANTS = ("vidgen", "torch", "torch channels last")
FRAMES = 16
WARMUP = 2
ENVIRONMENT = ("XLA_FLAGS", "GLIBC_TUNABLES", "OMP_WAIT_POLICY")
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def clips(work: str, args: argparse.Namespace) -> Any:
  """uint8 [b, t, h, w, 3]."""
  import numpy as np

  shape = (args.batch, FRAMES, int(work), int(work), 3)
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def vidgen_entrant(work: str, args: argparse.Namespace) -> dict[str, Any]:
  """What `serve` needs: "step", "compile_seconds"."""
  from vidgen.evals.extractors.i3d import i3d_extractor, random_i3d

  extractor = i3d_extractor(random_i3d(0), digest="", weights="random", batch_size=args.batch)
  given = clips(work, args)
  begin = time.perf_counter()
  extractor(given)
  seconds = time.perf_counter() - begin
  return {"step": lambda: extractor(given), "compile_seconds": seconds}


def torch_entrant(work: str, args: argparse.Namespace, *, layout: str) -> dict[str, Any]:
  """As `vidgen_entrant`."""
  sys.path.insert(0, str(FIXTURES))
  import torch  # type: ignore[reportMissingImports]  # of the extra `oracle`
  import torch.nn.functional as F  # type: ignore[reportMissingImports]  # likewise
  from make_feature_networks import I3D  # type: ignore[reportMissingImports]  # of the tests

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  network = I3D().eval()
  last = layout == "torch channels last"
  if last:
    network = network.to(memory_format=torch.channels_last_3d)
  given = torch.from_numpy(clips(work, args))

  def step() -> None:
    with torch.inference_mode():
      x = given.flatten(0, 1).permute(0, 3, 1, 2).float()
      if x.shape[-1] != 224:
        x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
      x = (2 * x / 255 - 1).unflatten(0, (args.batch, FRAMES)).permute(0, 2, 1, 3, 4)
      x = x.contiguous(memory_format=torch.channels_last_3d) if last else x.contiguous()
      network(x).numpy()

  return {"step": step, "compile_seconds": 0.0}


def serve(args: argparse.Namespace) -> None:
  """The life of an entrant: says that it is ready, and makes a step for each line it gets."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print is no answer
  entrant, work = args.serve
  begun = peak_rss()
  make = vidgen_entrant if entrant == "vidgen" else None
  made = make(work, args) if make else torch_entrant(work, args, layout=entrant)
  step: Step = made.pop("step")
  for _ in range(WARMUP):
    step()
  print(json.dumps(made | {"bare_bytes": begun}), file=answers)
  for _ in sys.stdin:
    begin, used = time.perf_counter(), time.process_time()
    step()
    times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - used}
    print(json.dumps(times | {"peak_bytes": peak_rss()}), file=answers)


class Entrant:
  """One entrant's process; a step for each call of `time`."""

  def __init__(self, name: str, work: str, args: argparse.Namespace):
    python = sys.executable if name == "vidgen" else args.torch_python
    given = ["--serve", name, work, "--threads", str(args.threads), "--batch", str(args.batch)]
    self._process = subprocess.Popen(
      [python, __file__, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.name = name
    self.facts = self._answer()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"{self.name} ended with {self._process.wait()}; its message is above")
    return json.loads(line)

  def time(self) -> tuple[float, float]:
    """Seconds of one step: by the clock, and of all threads on the cores."""
    assert self._process.stdin
    self._process.stdin.write("\n")
    self._process.stdin.flush()
    answer = self._answer()
    self.facts["peak_bytes"] = answer["peak_bytes"]
    return answer["seconds"], answer["cpu_seconds"]

  def close(self) -> None:
    """Ends it."""
    self._process.communicate()


def compare(work: str, args: argparse.Namespace) -> dict[str, Any]:
  """Figures of every entrant at `work`, and vidgen's ratio to each other one."""
  with contextlib.ExitStack() as stack:
    entrants = []
    for name in args.entrants:
      entrants.append(Entrant(name, work, args))
      stack.callback(entrants[-1].close)
    times: dict[str, list[tuple[float, float]]] = {entrant.name: [] for entrant in entrants}
    for turn in range(args.rounds):
      for entrant in entrants if turn % 2 == 0 else reversed(entrants):
        times[entrant.name].append(entrant.time())
  figures = {}
  for entrant in entrants:
    clock, cpu = zip(*times[entrant.name], strict=True)
    figures[entrant.name] = {
      **entrant.facts,
      "median_seconds": statistics.median(clock),
      "least_seconds": min(clock),
      "most_seconds": max(clock),
      "median_cpu_seconds": statistics.median(cpu),
      "clips_per_second": args.batch / statistics.median(clock),
      "seconds": clock,
      "cpu_seconds": cpu,
    }
  others = [name for name in times if name != "vidgen" and "vidgen" in times]

  def ratios(key: str) -> dict[str, float]:
    return {name: figures["vidgen"][key] / figures[name][key] for name in others}

  return {
    "entrants": figures,
    "vidgen_over": ratios("median_seconds"),
    "vidgen_over_least": ratios("least_seconds"),
    "vidgen_over_cpu": ratios("median_cpu_seconds"),
  }


def main() -> None:
  """Runs, prints, and writes the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
  parser.add_argument("--entrants", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
  parser.add_argument("--rounds", type=int, default=9, help="steps of each (default: 9)")
  parser.add_argument("--batch", type=int, default=1, help="clips a step (default: 1)")
  parser.add_argument("--threads", type=int, default=2, help="cores (default: 2)")
  parser.add_argument("--torch-python", default=sys.executable, help="the Python that has torch")
  parser.add_argument("--json", metavar="FILE", help="write the figures there")
  parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    return serve(args)
  cores = sorted(os.sched_getaffinity(0))[: args.threads]
  os.sched_setaffinity(0, cores)  # inherited by the entrants
  os.environ |= {"OMP_NUM_THREADS": str(args.threads), "JAX_PLATFORMS": "cpu"}
  os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
  results: dict[str, Any] = {
    "cpu": cpu_model(),
    "cores": len(cores),
    "versions": versions(),
    "environment": {n: os.environ.get(n, "") for n in ENVIRONMENT},
    "batch": args.batch,
    "frames": FRAMES,
    "rounds": args.rounds,
    "works": {},
  }
  for work in args.works:
    results["works"][work] = found = compare(work, args)
    for name, figures in found["entrants"].items():
      ratio = found["vidgen_over"].get(name)
      print(
        f"{work:4s} {name:20s} median {figures['median_seconds'] * 1e3:8.1f} ms "
        f"({figures['least_seconds'] * 1e3:.1f} to {figures['most_seconds'] * 1e3:.1f})  "
        f"CPU {figures['median_cpu_seconds'] * 1e3:8.1f} ms  "
        f"peak {figures['peak_bytes'] / 2**20:6.0f} MiB"
        + (f"  vidgen takes {ratio:.3f} of it" if ratio else "")
        + (f" ({found['vidgen_over_cpu'][name]:.3f} of the CPU time)" if ratio else "")
      )
    if args.json:
      Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
