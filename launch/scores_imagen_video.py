"""Imagen Video's cascade, small, on this machine: what `make scores-imagen-video` runs.

Builds ShapesWorld shards, trains the seven models, each by itself on real clips, and a student of 8
steps of each; takes held-out captions through both cascades and scores what every stage made that
is large enough to be read. Beside it a base model is trained as many steps on clips alone. Each
step is a `vidgen` command that is printed before it runs. What was done is not done again: the same
command goes on where it was stopped. Configs are overridden by --STAGE.config.key=value, as
--ssr2.config.train.steps=100, those of students by --ssr2_distilled.config.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scores import Chain, overrides, print_probe

from vidgen.whole_file import write_whole

CASCADE = {
  "base": "base.py:tiny",
  "tsr1": "tsr.py:tiny1",
  "ssr1": "ssr.py:tiny1",
  "ssr2": "ssr.py:tiny2",
  "tsr2": "tsr.py:tiny2",
  "tsr3": "tsr.py:tiny3",
  "ssr3": "ssr.py:tiny3",
}
STUDENTS = {f"{name}_distilled": f"{config}.distilled" for name, config in CASCADE.items()}
CLIPS_ALONE = "base_video"
CONFIGS = {
  name: f"imagen_video/{config}"
  for name, config in (CASCADE | STUDENTS | {CLIPS_ALONE: "base.py:tiny.video"}).items()
}
READABLE = 16  # pixels of a side, that the probe needs
HELD_OUT_BATCHES, SAMPLED_AT_ONCE = 8, 8


def main() -> None:
  """Runs it all and prints its tables."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--out", type=Path, default=Path("runs/scores_imagen_video"))
  parser.add_argument("--count", type=int, default=2048, help="training clips")
  parser.add_argument("--samples", type=int, default=64, help="held-out captions")
  args, rest = parser.parse_known_args()
  chain = Chain.begin(args.out.resolve(), CONFIGS, overrides(parser, rest, stages=CONFIGS))
  data = chain.out / "data"
  chain.once(
    "build shards", "data", "build", "data/shapes_world.py:cascade", "--out", data,
    "--count", str(args.count),
  )  # fmt: skip
  for name in (*CASCADE, CLIPS_ALONE):
    chain.train(name)
  for name in CASCADE:
    chain.train(f"{name}_distilled", "--start-from", chain.out / name)
  students = list(STUDENTS)
  cascades = {
    "distilled": students,
    "teachers": list(CASCADE),
    "joint_base": ["base", *students[1:]],
    "clips_alone": [CLIPS_ALONE, *students[1:]],
  }
  results: dict[str, Any] = {"probe": {}, "seconds_a_clip": {}}
  for name, runs in cascades.items():
    probe, seconds = sampled(chain, name, runs, data=data, count=args.samples)
    results["probe"] |= probe
    results["seconds_a_clip"][name] = seconds
  results["evaluations"] = {n: evaluations(chain.out, cascades[n]) for n in cascades}
  results["held_out_loss"] = losses_of_clips(chain, ("base", CLIPS_ALONE))
  results["gap"] = {name: held_out(chain.out / name, "gap") for name in STUDENTS}
  results["seconds"] = {name: step["seconds"] for name, step in chain.book.items()}
  write_whole(chain.out / "scores.json", (json.dumps(results, indent=2) + "\n").encode())
  print_probe(results["probe"])
  print_times(results)


def sampled(
  chain: Chain, name: str, runs: Sequence[str], *, data: Path, count: int
) -> tuple[dict[str, dict[str, float]], dict[str, float | None]]:
  """Takes held-out captions through the runs.

  Returns what the probe reads, by cascade and stage, and seconds of the networks, by run.
  """
  out, summary = chain.out / "samples" / name, chain.out / "samples" / f"{name}.json"
  chain.once(
    f"sample {name}", "cascade", "--runs", *(chain.out / run for run in runs), "--out", out,
    "--prompts", data / "prompts" / "held_out.jsonl", "--count", str(count),
    "--batch-size", str(SAMPLED_AT_ONCE), "--json", summary,
  )  # fmt: skip
  stages = json.loads(summary.read_text())["stages"]
  seconds = {stage["name"]: stage["seconds_per_clip"] for stage in stages}
  found = {}
  for number, run in enumerate(runs):
    folder = out / f"{number}_{run}"
    record = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    if min(record["height"], record["width"]) >= READABLE:
      found[f"{name} {run}"] = chain.score(folder, data, "shapes_probe")["accuracy"]
  return found, seconds


def evaluations(out: Path, runs: Sequence[str]) -> int:
  """How often a network is evaluated for a clip, by all stages."""
  from vidgen.train.trained import describe_trained

  total = 0
  for run in runs:
    found = describe_trained(out / run)
    stage: Any = found.stage
    total += stage.evaluations(found.experiment.sample)
  return total


def losses_of_clips(chain: Chain, runs: Sequence[str]) -> dict[str, float]:
  """Held-out losses of base models on clips alone: the same clips, times and noise for each."""
  import jax

  from vidgen.train.data import ShardData
  from vidgen.train.step import eval_step
  from vidgen.train.trained import load_trained

  trained = {run: load_trained(chain.out / run) for run in runs}
  experiment, stage = trained[CLIPS_ALONE].experiment, trained[CLIPS_ALONE].stage
  config = experiment.train
  data = ShardData(
    experiment.inputs, str(chain.out / "data"), batch_size=config.batch_size, seed=config.seed,
    workdir=chain.out / CLIPS_ALONE,
  )  # fmt: skip
  batches = data.held_out(HELD_OUT_BATCHES)
  data.close()
  loss = jax.jit(
    lambda params, batch, index: eval_step(params, batch, index, stage=stage, config=config)["loss"]
  )
  return {
    run: float(np.mean([loss(found.params, batch, i) for i, batch in enumerate(batches)]))
    for run, found in trained.items()
  }


def held_out(run: Path, name: str) -> float:
  """The last mean over held-out batches of a metric of a run."""
  rows = map(json.loads, (run / "train.jsonl").read_text().splitlines())
  return [row[f"held_out_{name}"] for row in rows if f"held_out_{name}" in row][-1]


def print_times(results: dict[str, Any]) -> None:
  """Evaluations and seconds of each cascade, what was trained on beside clips, and the time."""
  print("\n| cascade | network evaluations a clip | seconds a clip |\n| --- | --- | --- |")
  for name, count in results["evaluations"].items():
    seconds = list(results["seconds_a_clip"][name].values())  # none of clips made in one batch
    total = f"{sum(seconds):.2f}" if None not in seconds else ""
    print(f"| {name} | {count} | {total} |")
  print("\n| base model | held-out loss |\n| --- | --- |")
  for name, loss in results["held_out_loss"].items():
    print(f"| {name} | {loss:.4f} |")
  print("\n| student | held-out gap to its teacher |\n| --- | --- |")
  for name, gap in results["gap"].items():
    print(f"| {name} | {gap:.4f} |")
  seconds = results["seconds"]
  print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
  print(f"in all {sum(seconds.values()) / 60:.0f} minutes")


if __name__ == "__main__":
  main()
