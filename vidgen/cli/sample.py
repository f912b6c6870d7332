"""`vidgen sample`: prompts to videos, with a record of what made each."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError

UPSAMPLED = "upsampled"  # folder of the larger samples in that of the samples


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
  parser.add_argument("--batch-size", type=int, default=16, help="samples drawn at once")
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters"
  )
  parser.add_argument(
    "--encoder", action="append", default=[], metavar="NAME=FOLDER",
    help="where a text encoder lies, if not where the run's config says; may be repeated",
  )  # fmt: skip
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")
  group = parser.add_argument_group("how to sample", "Each by default as the run's config says.")
  group.add_argument("--steps", type=int, help="sampler steps")
  group.add_argument("--guidance", type=float, help="guidance scale; 1: off")
  group.add_argument(
    "--schedule", choices=("linear", "linear_quadratic"), help="how the steps are spaced"
  )
  group.add_argument(
    "--linear-steps", type=int, metavar="N",
    help="linear_quadratic: the first half of the steps are as long as those of N linear ones",
  )  # fmt: skip
  group = parser.add_argument_group("the shape", "Each by default that of the first bucket.")
  group.add_argument("--frames", type=int, help="of a sample; any number that the model can hold")
  group.add_argument("--height", type=int, help="in pixels")
  group.add_argument("--width", type=int, help="in pixels")
  group.add_argument(
    "--fps", type=float, help="frames a second, of the file and as the model reads"
  )
  group = parser.add_argument_group(
    "prompts", "What the model reads is recorded beside the prompt."
  )
  which = group.add_mutually_exclusive_group()
  which.add_argument(
    "--rewrites", type=Path, metavar="FILE.jsonl",
    help="rewritten prompts, as lines of prompt and rewrite; OUT/rewrites.jsonl of another run",
  )  # fmt: skip
  which.add_argument(
    "--rewriter", metavar="URL",
    help="an endpoint on this machine, http://127.0.0.1:PORT/PATH, which is posted a JSON object"
    " with prompt and answers one with rewrite",
  )  # fmt: skip
  group.add_argument(
    "--camera", default="", metavar="MOTION",
    help="a camera motion, of a run whose captions begin with one (config.inputs.prefix)",
  )  # fmt: skip
  group.add_argument(
    "--rewrite-failure", choices=("error", "prompt"), default="error",
    help="what stands for a rewrite that fails or changes a quote: an error, or the prompt itself",
  )  # fmt: skip
  group = parser.add_argument_group("latents", "Of a stage that makes an autoencoder's latents.")
  which = group.add_mutually_exclusive_group()
  which.add_argument(
    "--autoencoder", default="", metavar="RUN[@STEP]",
    help="the run that decodes them, if it lies not where the config says",
  )  # fmt: skip
  which.add_argument(
    "--latents-only", action="store_true",
    help="stop when all latents are made; `vidgen decode`, or this command without it, goes on",
  )  # fmt: skip
  group = parser.add_argument_group("larger samples", "`vidgen upsample` has more options.")
  group.add_argument(
    "--upsampler", default="", metavar="RUN[@STEP]",
    help=f"upsample the samples into OUT/{UPSAMPLED} with this run, as its config says",
  )  # fmt: skip


def run(args: argparse.Namespace) -> int:
  """Samples, upsamples where that is asked for, and says where the samples are."""
  from vidgen.cli.upsample import find_upsampler, summary_line, upsample_folder

  upsampler: dict[str, Any] = {}
  if args.upsampler:
    if args.latents_only:
      raise ConfigError("--upsampler takes videos, which --latents-only leaves out")
    upsampler = find_upsampler(
      args.upsampler, weights=args.weights, encoders=encoder_folders(args.encoder)
    )
  summary = _sample(args)
  if args.upsampler:
    summary["upsampled"] = upsample_folder(args.out, args.out / UPSAMPLED, **upsampler)
    print(summary_line(summary["upsampled"]))
  if args.json:
    args.json.write_text(json.dumps(summary, indent=2) + "\n")
  return 0


def _sample(args: argparse.Namespace) -> dict[str, Any]:
  """Samples, and returns a summary, fit for JSON."""
  from vidgen.cli.progress import Progress
  from vidgen.evals.generation import generate
  from vidgen.evals.samples import SampleOrigin
  from vidgen.inputs.text import make_tokenizer
  from vidgen.systems.sampling import Sampler, sampled
  from vidgen.train.trained import load_trained

  prompts = chosen_prompts(args)
  rewriter = make_rewriter(args)
  trained = load_trained(args.workdir, step=args.step, weights=args.weights)
  encoders = trained.text_encoders(encoder_folders(args.encoder))
  settings = trained.settings(
    steps=args.steps, guidance_scale=args.guidance, schedule=args.schedule,
    linear_steps=args.linear_steps, frames=args.frames, height=args.height, width=args.width,
  )  # fmt: skip
  fps = frame_rate(args.fps, default=lambda: trained.fps)
  inputs = trained.experiment.inputs
  frames = trained.shape(settings)[0] if inputs.prefix else 1
  prefix = prefixer(inputs, fps=fps, frames=frames, camera=args.camera)
  decodes = "video" in sampled(trained.stage, settings)
  autoencoder = None
  if not decodes and not args.latents_only:
    autoencoder = trained.load_autoencoder(args.autoencoder)
  batch_size, sharding = trained.batch_sharding(min(args.batch_size, len(prompts)))
  sampler = Sampler(
    trained.stage, params=trained.params, settings=settings, seed=args.seed,
    batch_size=batch_size, sharding=sharding,
  )  # fmt: skip
  rewritten = rewrites(args, [prompt.text for prompt in prompts], rewriter=rewriter)
  texts = [
    prefix(prompt.text if rewrite is None else rewrite)
    for prompt, rewrite in zip(prompts, rewritten, strict=True)
  ]
  origins = [
    SampleOrigin(
      index=i, prompt=prompt.text, seed=args.seed, step=trained.step, weights=args.weights,
      config_digest=trained.config_digest, params_digest=trained.params_digest, settings=settings,
      fps=fps, rewrite=rewrite, text="" if text == prompt.text else text,
    )
    for i, (prompt, rewrite, text) in enumerate(zip(prompts, rewritten, texts, strict=True))
  ]  # fmt: skip
  with trained.mesh_context():
    generated = generate(
      args.out, prompts=prompts, origins=origins, stage=trained.stage, sampler=sampler,
      tokenizer=make_tokenizer(trained.experiment.inputs.tokenizer), encoders=encoders,
      autoencoder=autoencoder, identity=trained.autoencoder or None,
      shape=None if decodes else trained.shape(settings), decode=not args.latents_only,
      progress=Progress("samples"),
    )  # fmt: skip
  what = "latents" if args.latents_only else "samples"
  print(
    f"{len(origins)} {what} of step {trained.step} in {args.out}"
    + (f"; {generated.reused} had their latents already" if generated.reused else "")
    + (f"; {generated.cut} prompts were longer than the model reads" if generated.cut else "")
  )
  return {
    "out": str(args.out), "count": len(origins), "reused": generated.reused,
    "cut": generated.cut, "step": trained.step, "seed": args.seed, "weights": args.weights,
    "settings": dataclasses.asdict(settings), "fps": fps, "decoded": not args.latents_only,
    "config_digest": trained.config_digest, "params_digest": trained.params_digest,
  }  # fmt: skip


def chosen_prompts(args: argparse.Namespace) -> list[Any]:
  """The prompts that are asked for.

  Raises:
    ConfigError: fewer than one, or more than there are.
  """
  from vidgen.inputs.prompts import read_prompts

  for name in ("count", "batch_size"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
  prompts = read_prompts(args.prompts)
  if args.count is not None and args.count > len(prompts):
    raise ConfigError(f"--count {args.count}: {args.prompts} holds {len(prompts)} prompts")
  return prompts[: args.count]


def frame_rate(given: float | None, *, default: Callable[[], float]) -> float:
  """Frames a second.

  Raises:
    ConfigError: not a positive number.
  """
  if given is None:
    return default()
  if not 0 < given < float("inf"):
    raise ConfigError(f"--fps must be positive, got {given}")
  return given


def make_rewriter(args: argparse.Namespace) -> Any:
  """What the arguments name, or None."""
  from vidgen.inputs.rewriting import HttpRewriter, RewriteFile

  if args.rewrites:
    return RewriteFile(args.rewrites)
  return HttpRewriter(args.rewriter) if args.rewriter else None


def rewrites(
  args: argparse.Namespace, prompts: Sequence[str], *, rewriter: Any
) -> Sequence[str | None]:
  """The rewrite of every prompt, also in OUT/rewrites.jsonl; None where there is no rewriter."""
  from vidgen.inputs.rewriting import FILE, rewrite_all

  if rewriter is None:
    return [None] * len(prompts)
  args.out.mkdir(parents=True, exist_ok=True)
  made = rewrite_all(
    prompts, rewriter=rewriter, cache=args.out / FILE, failure=args.rewrite_failure
  )
  kept = {each.prompt: each.problem for each in made if each.problem}
  for prompt, problem in kept.items():
    print(f"warning: not rewritten: {prompt[:80]!r}: {problem}", file=sys.stderr)
  return [each.rewrite for each in made]


def prefixer(inputs: Any, *, fps: float, frames: int, camera: str = "") -> Callable[[str], str]:
  """What puts before a text what the run's captions had before them, exactly once.

  Raises:
    ConfigError: a camera motion, of a run whose captions had none.
  """
  from vidgen.inputs.prefix import parts_of, prefixed

  if camera and "camera" not in inputs.prefix:
    raise ConfigError("--camera: the run's captions had no camera motion before them")
  parts = parts_of(inputs.prefix, frames=frames)
  return lambda text: prefixed(text, parts=parts, fps=fps, camera=camera)


def encoder_folders(arguments: list[str]) -> dict[str, str]:
  """The folders of `NAME=FOLDER`, by name.

  Raises:
    ConfigError: an argument of another form.
  """
  folders = {}
  for text in arguments:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder) or name in folders:
      raise ConfigError(f"--encoder {text!r}: expected NAME=FOLDER, each name once")
    folders[name] = folder
  return folders
