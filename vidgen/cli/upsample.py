"""`vidgen upsample`: samples to larger samples, with a record of what made each."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from vidgen.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen upsample`."""
  parser.add_argument("--workdir", type=Path, required=True, help="a run of an upsampler")
  parser.add_argument(
    "--samples", type=Path, required=True, help="a folder that `vidgen sample` filled"
  )
  parser.add_argument("--out", type=Path, required=True, help="folder for the larger samples")
  parser.add_argument("--seed", type=int, help="of the noise (default: that of the samples)")
  parser.add_argument("--step", type=int, help="checkpoint to use (default: the newest)")
  parser.add_argument("--steps", type=int, help="sampler steps (default: the config's)")
  parser.add_argument("--guidance", type=float, help="guidance scale (likewise); 1: off")
  parser.add_argument("--height", type=int, help="of the result (default: the first bucket's)")
  parser.add_argument("--width", type=int, help="likewise")
  parser.add_argument("--batch-size", type=int, default=1, help="samples upsampled at once")
  parser.add_argument(
    "--weights", choices=("ema", "params"), default="ema", help="which parameters"
  )
  parser.add_argument(
    "--autoencoder", default="", metavar="RUN[@STEP]",
    help="where the autoencoder's run lies, if not where the upsampler's config says",
  )  # fmt: skip
  parser.add_argument(
    "--encoder", action="append", default=[], metavar="NAME=FOLDER",
    help="where a text encoder lies, if not where the run's config says; may be repeated",
  )  # fmt: skip
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
  """Upsamples, and says where the results are."""
  from vidgen.cli.sample import encoder_folders

  summary = upsample_folder(
    args.samples, args.out, workdir=args.workdir, seed=args.seed, step=args.step,
    steps=args.steps, guidance=args.guidance, height=args.height, width=args.width,
    batch_size=args.batch_size, weights=args.weights, autoencoder=args.autoencoder,
    encoders=encoder_folders(args.encoder),
  )  # fmt: skip
  print(summary_line(summary))
  if args.json:
    args.json.write_text(json.dumps(summary, indent=2) + "\n")
  return 0


def summary_line(summary: dict[str, Any]) -> str:
  """A summary of `upsample_folder` in words."""
  return (
    f"{summary['count']} samples of {summary['height']} x {summary['width']} in {summary['out']}"
    + (f"; {summary['reused']} had their latents already" if summary["reused"] else "")
    + (f"; {summary['cut']} prompts were longer than the model reads" if summary["cut"] else "")
  )


def find_upsampler(run: str, *, weights: Any, encoders: dict[str, str]) -> dict[str, Any]:
  """The arguments of `upsample_folder` for RUN[@STEP]; of `encoders` those that the run has.

  Raises:
    ConfigError: the run is not an upsampler's, or names no autoencoder whose latents it makes.
    CheckpointError: no such run or step, or its config is damaged; or the autoencoder is another.
  """
  from vidgen.systems.sampling import sampled
  from vidgen.train.autoencoder import describe_autoencoder
  from vidgen.train.trained import describe_trained, run_and_step

  workdir, step = run_and_step(run)
  found = describe_trained(workdir, step=step, weights=weights)
  _check_upsampler(found, workdir)
  if "video" not in sampled(found.stage, found.experiment.sample):
    source = found.autoencoder_source()
    found.check_autoencoder(source, describe_autoencoder(source).identity)
  known = found.experiment.inputs.encoders
  return {
    "workdir": Path(workdir), "step": found.step, "weights": weights,
    "encoders": {name: folder for name, folder in encoders.items() if name in known},
  }  # fmt: skip


def _check_upsampler(found: Any, workdir: Path | str) -> None:
  from vidgen.evals.upsampling import GIVEN
  from vidgen.systems.sampling import input_spec

  if not set(GIVEN) <= set(input_spec(found.stage, 1)):
    raise ConfigError(f"{workdir}: {found.experiment.stage.name} is not an upsampler")


def upsample_folder(
  samples: Path,
  out: Path,
  *,
  workdir: Path,
  seed: int | None = None,
  step: int | None = None,
  steps: int | None = None,
  guidance: float | None = None,
  height: int | None = None,
  width: int | None = None,
  batch_size: int = 1,
  weights: Any = "ema",
  autoencoder: str = "",
  encoders: dict[str, str] | None = None,
) -> dict[str, Any]:
  """Upsamples the folder `samples` into `out` by the run at `workdir`; a summary, fit for JSON.

  Raises:
    ConfigError: the run is not an upsampler's, or cannot make this size.
    DataError: the samples are not whole.
    CheckpointError: the run, its autoencoder or a text encoder is damaged or another.
  """
  from vidgen.cli.progress import Progress
  from vidgen.evals.samples import SampleOrigin, read_samples
  from vidgen.evals.upsampling import upsample
  from vidgen.inputs.text import make_tokenizer
  from vidgen.systems.sampling import Sampler
  from vidgen.train.trained import load_trained

  for name, value in (("height", height), ("width", width), ("batch-size", batch_size)):
    if value is not None and value < 1:
      raise ConfigError(f"--{name} must be at least 1")
  if out.resolve() == samples.resolve():
    raise ConfigError(f"--out {out}: is the folder of the samples")
  found = read_samples(samples)
  trained = load_trained(workdir, step=step, weights=weights)
  _check_upsampler(trained, workdir)
  bucket = {b.name: b for b in trained.experiment.inputs.buckets}[trained.stage.buckets[0]]
  height, width = height or bucket.height, width or bucket.width
  settings = dataclasses.replace(
    trained.settings(steps=steps, guidance_scale=guidance), height=height, width=width
  )
  seed = found.records[0].seed if seed is None else seed
  batch_size, sharding = trained.batch_sharding(min(batch_size, len(found.records)))
  sampler = Sampler(
    trained.stage, params=trained.params, settings=settings, seed=seed, batch_size=batch_size,
    sharding=sharding,
  )  # fmt: skip
  origins = [
    SampleOrigin(
      index=record.index, prompt=record.prompt, seed=seed, step=trained.step, weights=weights,
      config_digest=trained.config_digest, params_digest=trained.params_digest, settings=settings,
      fps=record.fps, rewrite=record.rewrite, text=record.text, source=record.sha256,
    )
    for record in found.records
  ]  # fmt: skip
  with trained.mesh_context():
    generated = upsample(
      out, samples=found, origins=origins, stage=trained.stage, sampler=sampler,
      autoencoder=_open_autoencoder(trained, autoencoder),
      tokenizer=make_tokenizer(trained.experiment.inputs.tokenizer), height=height, width=width,
      frames_at_once=bucket.frames, encoders=trained.text_encoders(encoders or {}),
      progress=Progress("samples"),
    )  # fmt: skip
  return {
    "out": str(out), "samples": str(samples), "count": len(generated.records),
    "reused": generated.reused, "cut": generated.cut, "step": trained.step, "seed": seed,
    "weights": weights, "height": height, "width": width,
    "settings": dataclasses.asdict(settings), "config_digest": trained.config_digest,
    "params_digest": trained.params_digest,
  }  # fmt: skip


def _open_autoencoder(trained: Any, run: str) -> Any:
  """The autoencoder of the run's latents, at `run` where that is given; None if it has none.

  Raises:
    ConfigError: it works on pixels, and `run` is given.
    CheckpointError: as `Trained.load_autoencoder`.
  """
  if trained.experiment.inputs.autoencoder is not None:
    return trained.load_autoencoder(run)
  if run:
    raise ConfigError(f"--autoencoder {run}: the run has none, it works on pixels")
  return None
