"""What fewer sampler steps cost: how far a sample lies from that of many linear steps.

  python benchmarks/sampler_steps.py --workdir RUN --prompts FILE --count 16 --json FILE

The same parameters, texts and noise are sampled with several schedules: 50 linear-quadratic steps
that emulate 250 and 1000 linear ones (Movie Gen, section 3.4.2), 50 linear ones, 250 and 1000. A
distance is the root mean square over the latents of a sample, in units of the root mean square of
the reference's own latents; told are its mean over the samples and its largest value. Times are
those of a whole batch on the clock, without compiling.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS, LINEAR, FINE = 50, 250, 1000


def schedules(steps: int, linear: int, fine: int) -> dict[str, dict[str, Any]]:
  """Sampler settings by the name that a schedule has in the results."""
  found: dict[str, dict[str, Any]] = {
    f"linear {n}": {"steps": n, "schedule": "linear"} for n in (steps, linear, fine) if n
  }
  for emulated in (linear, fine):
    if emulated:
      found[f"linear-quadratic {steps} for {emulated}"] = {
        "steps": steps, "schedule": "linear_quadratic", "linear_steps": emulated,
      }  # fmt: skip
  return found


def distances(made: np.ndarray, reference: np.ndarray) -> dict[str, float]:
  """Of latents [n, t, h, w, c] to others, relative to these: the mean over n, and the largest."""
  axes = tuple(range(1, made.ndim))
  error = np.sqrt(np.mean(np.square(made.astype(np.float64) - reference), axis=axes))
  size = np.sqrt(np.mean(np.square(reference.astype(np.float64)), axis=axes))
  return {"mean": float(np.mean(error / size)), "largest": float(np.max(error / size))}


def main() -> None:
  """Samples with every schedule and writes the distances."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--workdir", type=Path, required=True, help="a trained run")
  parser.add_argument("--prompts", type=Path, required=True, help="as for `vidgen sample`")
  parser.add_argument("--count", type=int, default=16, help="samples (default: %(default)s)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
  parser.add_argument("--guidance", type=float, help="guidance scale (default: the config's)")
  parser.add_argument("--steps", type=int, default=STEPS, help="few steps (default: %(default)s)")
  parser.add_argument("--linear", type=int, default=LINEAR, help="linear ones (%(default)s)")
  parser.add_argument("--fine", type=int, default=FINE, help="many; 0: none (%(default)s)")
  parser.add_argument("--json", type=Path, metavar="FILE")
  args = parser.parse_args()

  from vidgen.evals.generation import text_inputs
  from vidgen.inputs.prompts import read_prompts
  from vidgen.inputs.text import make_tokenizer
  from vidgen.systems.sampling import Sampler
  from vidgen.train.trained import load_trained

  trained = load_trained(args.workdir, step=args.step)
  prompts = [prompt.text for prompt in read_prompts(args.prompts)][: args.count]
  batch_size, sharding = trained.batch_sharding(len(prompts))
  inputs = text_inputs(
    trained.stage, prompts, tokenizer=make_tokenizer(trained.experiment.inputs.tokenizer),
    fps=trained.fps, encoders=trained.text_encoders({}),
  )  # fmt: skip
  made, seconds = {}, {}
  for name, given in schedules(args.steps, args.linear, args.fine).items():
    sampler = Sampler(
      trained.stage, params=trained.params, seed=args.seed, batch_size=batch_size,
      settings=trained.settings(guidance_scale=args.guidance, **given), sharding=sharding,
    )  # fmt: skip
    with trained.mesh_context():
      sampler.latents(inputs, np.arange(len(prompts)))  # compiles
      begin = time.perf_counter()
      made[name] = sampler.latents(inputs, np.arange(len(prompts)))
      seconds[name] = time.perf_counter() - begin
    print(f"{name}: {seconds[name]:.2f} s for {len(prompts)} samples", flush=True)
  references = [f"linear {n}" for n in (args.linear, args.fine) if n]
  table = {
    f"to {reference}": {
      name: distances(latents, made[reference])
      for name, latents in made.items()
      if name != reference
    }
    for reference in references
  }
  for reference, rows in table.items():
    for name, row in rows.items():
      print(f"{name} {reference}: {row['mean']:.5f} (largest {row['largest']:.5f})")
  result = {
    "workdir": args.workdir.name, "step": trained.step, "params_digest": trained.params_digest,
    "samples": len(prompts), "seed": args.seed, "shape": list(next(iter(made.values())).shape[1:]),
    "guidance_scale": trained.settings(guidance_scale=args.guidance).guidance_scale,
    "seconds": seconds, "distances": table,
  }  # fmt: skip
  if args.json:
    args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
