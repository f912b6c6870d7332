"""The main job, end to end on this machine: what `make demo` runs.

Builds ShapesWorld shards, trains a small text-to-video model, kills the training once and resumes
it, samples the held-out captions, scores them with the probe, exports the model and writes the
report. Everything lands in runs/demo. Each step is a `vidgen` command that is printed before it
runs, so that any of them can be repeated by hand.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from vidgen.dist.flags import additions

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/movie_gen/t2v_256.py:tiny"
MARK = ".made-by-demo"  # only a folder that holds this file is ever deleted


def environment() -> dict[str, str]:
  """What makes XLA quick on a CPU; a compilation cache makes the restart after the kill quick."""
  base = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    **os.environ,
  }
  return {**base, **additions(base, platform="cpu")[0]}


class Demo:
  """Runs the verbs one after another and keeps the time each took."""

  def __init__(self, out: Path):
    self.out = out
    self.seconds: dict[str, float] = {}

  def start(self, *arguments: str | Path) -> subprocess.Popen:
    """Starts one `vidgen` command and prints it as one would type it."""
    words = [str(a) for a in arguments]
    print(f"\n$ vidgen {' '.join(words)}", flush=True)
    return subprocess.Popen(
      [sys.executable, "-m", "vidgen.cli", *words], env=environment(), cwd=ROOT
    )

  def run(self, name: str, *arguments: str | Path) -> None:
    """Runs one `vidgen` command to its end; any other exit code than 0 ends the demo with it."""
    begin = time.monotonic()
    code = self.start(*arguments).wait()
    self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
    if code:
      sys.exit(code)

  def train_and_kill(self, *arguments: str | Path) -> None:
    """Starts training and kills it, as a machine failure would, after its first checkpoint."""
    begin = time.monotonic()
    process = self.start(*arguments)
    while process.poll() is None and not any(self.out.glob("checkpoints/*/manifest.json")):
      time.sleep(0.2)
    time.sleep(2.0)  # some steps past the checkpoint: work that the resumed run must do again
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      print("\nkilled the training (SIGKILL); starting the same command again", flush=True)
    code = process.wait()
    self.seconds["train"] = time.monotonic() - begin
    if code not in (0, -signal.SIGKILL):
      sys.exit(code)


def main() -> None:
  """Runs the demo; `--count`, `--samples` and config overrides make it smaller or larger."""
  parser = argparse.ArgumentParser(description="The main job, end to end: what `make demo` runs.")
  parser.add_argument("--out", type=Path, default=Path("runs/demo"))
  parser.add_argument("--count", type=int, default=8192, help="training clips")
  parser.add_argument("--samples", type=int, default=64, help="held-out captions")
  args, overrides = parser.parse_known_args()
  begin, out = time.monotonic(), args.out.resolve()
  if out.exists():  # the demo shows a whole life, so it begins anew
    if not (out / MARK).exists():
      sys.exit(f"{out} exists and was not made by this demo; remove it or give another --out")
    shutil.rmtree(out)
  out.mkdir(parents=True)
  (out / MARK).touch()
  demo = Demo(out)
  data, samples, scores = out / "data", out / "samples", out / "scores.json"
  demo.run(
    "build shards", "data", "build", "data/shapes_world.py:single", "--out", data,
    "--count", str(args.count),
  )  # fmt: skip
  train = ("train", "--config", CONFIG, "--data", data, "--workdir", out, *overrides)
  demo.train_and_kill(*train)
  demo.run("train", *train)
  demo.run(
    "sample", "sample", "--workdir", out, "--prompts", data / "prompts" / "held_out.jsonl",
    "--count", str(args.samples), "--out", samples,
  )  # fmt: skip
  demo.run(
    "score", "eval", "--samples", samples, "--reference", data, "--metrics", "shapes_probe",
    "--json", scores,
  )  # fmt: skip
  for kind in ("safetensors", "stablehlo"):
    demo.run("export", "export", "--workdir", out, "--to", kind, "--out", out / "export" / kind)
  demo.run("report", "report", "--workdir", out, "--samples", samples, "--scores", scores)
  total = time.monotonic() - begin
  times = {**demo.seconds, "in all": total}
  (out / "times.json").write_text(json.dumps(times, indent=2) + "\n")
  print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in times.items()))
  accuracy = json.loads(scores.read_text())["accuracy"]
  print("probe on held-out captions: " + ", ".join(f"{k} {v:.0%}" for k, v in accuracy.items()))


if __name__ == "__main__":
  main()
