"""`vidgen sample`: prompts to videos, with a record of what made each."""

import argparse
import dataclasses
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen sample`."""
  parser.add_argument("--workdir", type=Path, required=True, help="a run, as `train` left it")
  parser.add_argument(
    "--prompts", type=Path, required=True,
    help="a .txt file with a prompt a line, .jsonl with prompt and, if wanted, key, or a published"
    " suite as SUITE:PATH, such as msr-vtt:test.csv (vidgen/inputs/prompt_suites.py)",
  )  # fmt: skip
  parser.add_argument("--out", type=Path, required=True, help="folder for the samples")
  parser.add_argument("--seed", type=int, default=0, help="noise of sample i is of (seed, i) alone")
  parser.add_argument("--step", type=int, help="checkpoint to sample from (default: the newest)")
  parser.add_argument("--count", type=int, help="only the first so many prompts")
  parser.add_argument("--steps", type=int, help="sampler steps (default: the config's)")
  parser.add_argument("--guidance", type=float, help="guidance scale (likewise); 1: off")
  parser.add_argument("--batch-size", type=int, default=16, help="samples drawn at once")
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters"
  )
  parser.add_argument(
    "--encoder", action="append", default=[], metavar="NAME=FOLDER",
    help="where a text encoder lies, if not where the run's config says; may be repeated",
  )  # fmt: skip
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
  """Samples, and says where the samples are."""
  from vidgen.cli.progress import Progress
  from vidgen.errors import ConfigError
  from vidgen.evals.generation import generate
  from vidgen.evals.samples import SampleOrigin
  from vidgen.inputs.prompts import read_prompts
  from vidgen.inputs.text import make_tokenizer
  from vidgen.systems.sampling import Sampler
  from vidgen.train.trained import load_trained

  for name in ("count", "batch_size"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
  prompts = read_prompts(args.prompts)
  if args.count is not None and args.count > len(prompts):
    raise ConfigError(f"--count {args.count}: {args.prompts} holds {len(prompts)} prompts")
  prompts = prompts[: args.count]
  trained = load_trained(args.workdir, step=args.step, weights=args.weights)
  encoders = trained.text_encoders(encoder_folders(args.encoder))
  settings = trained.settings(steps=args.steps, guidance_scale=args.guidance)
  batch_size, sharding = trained.batch_sharding(min(args.batch_size, len(prompts)))
  sampler = Sampler(
    trained.stage, params=trained.params, settings=settings, seed=args.seed,
    batch_size=batch_size, sharding=sharding,
  )  # fmt: skip
  origins = [
    SampleOrigin(
      index=i, prompt=prompt.text, seed=args.seed, step=trained.step, weights=args.weights,
      config_digest=trained.config_digest, params_digest=trained.params_digest, settings=settings,
    )
    for i, prompt in enumerate(prompts)
  ]  # fmt: skip
  with trained.mesh_context():
    generated = generate(
      args.out, prompts=prompts, origins=origins, stage=trained.stage, sampler=sampler,
      tokenizer=make_tokenizer(trained.experiment.inputs.tokenizer), fps=trained.fps,
      encoders=encoders, progress=Progress("samples"),
    )  # fmt: skip
  print(
    f"{len(generated.records)} samples of step {trained.step} in {args.out}"
    + (f"; {generated.reused} had their latents already" if generated.reused else "")
    + (f"; {generated.cut} prompts were longer than the model reads" if generated.cut else "")
  )
  if args.json:
    summary = {
      "out": str(args.out), "count": len(generated.records), "reused": generated.reused,
      "cut": generated.cut, "step": trained.step, "seed": args.seed, "weights": args.weights,
      "settings": dataclasses.asdict(settings), "config_digest": trained.config_digest,
      "params_digest": trained.params_digest,
    }  # fmt: skip
    args.json.write_text(json.dumps(summary, indent=2) + "\n")
  return 0


def encoder_folders(arguments: list[str]) -> dict[str, str]:
  """The folders of `NAME=FOLDER`, by name.

  Raises:
    ConfigError: an argument of another form.
  """
  from vidgen.errors import ConfigError

  folders = {}
  for text in arguments:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder) or name in folders:
      raise ConfigError(f"--encoder {text!r}: expected NAME=FOLDER, each name once")
    folders[name] = folder
  return folders
