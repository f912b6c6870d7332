"""Movie Gen Video's whole chain, small, on this machine: what `make scores` runs.

Builds ShapesWorld shards, trains the autoencoder (pictures, then clips), then on its latents the
image stage, the joint stage and the one of higher resolution, each from the one before, and the
upsampler; samples held-out captions and scores what was made. Each step is a `vidgen` command that
is printed before it runs. A step that was done is not done again: the same command goes on where
it was stopped.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from demo import ROOT, Demo

from vidgen.evals.clips import ClipRule
from vidgen.evals.extractors.i3d import i3d_extractor, random_i3d
from vidgen.evals.scoring import Session
from vidgen.evals.settings import Settings

CONFIGS = ROOT / "configs" / "movie_gen"
CONDITIONS = ("shape", "colour", "motion", "background", "all")


class Chain(Demo):
  """The stages, each in a folder of its own under `out`."""

  def __init__(self, out: Path, overrides: list[str]):
    super().__init__(out)
    self.overrides = overrides

  def once(self, name: str, *arguments: str | Path) -> None:
    """As `run`, unless it was done before."""
    done = self.out / "done.json"
    seconds = json.loads(done.read_text()) if done.exists() else {}
    if name not in seconds:
      begin = time.monotonic()
      self.run(name, *arguments)
      done.write_text(json.dumps({**seconds, name: time.monotonic() - begin}, indent=2) + "\n")
    self.seconds = json.loads(done.read_text())

  def train(self, name: str, config: str, *arguments: str | Path) -> Path:
    """A stage; its overrides are those that were given as --NAME.config.key=value."""
    mine = f"--{name}."
    own = ["--" + o.removeprefix(mine) for o in self.overrides if o.startswith(mine)]
    self.once(
      f"train {name}", "train", "--config", CONFIGS / config, "--data", self.out / "data",
      "--workdir", self.out / name, *arguments, *own,
    )  # fmt: skip
    return self.out / name


def main() -> None:
  """Runs the chain and prints its tables."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--out", type=Path, default=Path("runs/scores"))
  parser.add_argument("--count", type=int, default=4096, help="training clips")
  parser.add_argument("--samples", type=int, default=256, help="held-out captions, and clips")
  args, overrides = parser.parse_known_args()
  out = args.out.resolve()
  out.mkdir(parents=True, exist_ok=True)
  chain, data, count = Chain(out, overrides), out / "data", str(args.samples)
  chain.once(
    "build shards", "data", "build", "data/shapes_world.py:large", "--out", data,
    "--count", str(args.count),
  )  # fmt: skip

  images = chain.train("tae_image", "tae.py:tiny_image")
  tae = chain.train("tae", "tae.py:tiny", "--start-from", images)
  made = out / "reconstructed"
  chain.once(
    "reconstruct", "reconstruct", "--workdir", tae, "--data", data, "--out", made, "--count", count
  )

  encoder = f"--config.inputs.autoencoder.workdir={tae}"
  stages = {"image": "t2i_256.py:tiny", "joint": "t2v_256.py:tiny_latent",
            "high": "t2v_768.py:tiny_latent", "upsampler": "upsampler.py:tiny"}  # fmt: skip
  for name in ("joint", "upsampler"):  # clips whole, and frame by frame
    chain.once(
      f"measure latents of {name}", "data", "latents", data, "--config", CONFIGS / stages[name],
      "--autoencoder", tae,
    )  # fmt: skip
  start: list[str | Path] = []
  for name in ("image", "joint", "high"):
    chain.once(
      f"cache latents of {name}", "data", "latents", data, "--config", CONFIGS / stages[name],
      "--autoencoder", tae, "--cache", "--out", data / f"latents_{name}",
    )  # fmt: skip
    cached = f"--config.inputs.latents=latents_{name}"
    run = chain.train(name, stages[name], encoder, cached, *start)
    start = ["--start-from", run]
  chain.train("upsampler", stages["upsampler"], encoder)

  prompts = data / "prompts" / "held_out.jsonl"
  for name in ("joint", "high"):
    chain.once(
      f"sample {name}", "sample", "--workdir", out / name, "--prompts", prompts, "--count", count,
      "--out", out / f"{name}_samples",
    )  # fmt: skip
  chain.once(
    "upsample", "upsample", "--workdir", out / "upsampler", "--samples", out / "high_samples",
    "--out", out / "upsampled",
  )  # fmt: skip

  clips = {f"{b}, {part}": made / b / part for b in ("video", "image_128")
           for part in ("originals", "reconstructions")}  # fmt: skip
  sampled = {name: out / name for name in ("joint_samples", "high_samples", "upsampled")}
  probed = {}
  for name, folder in (clips | sampled).items():
    reference = data if name in sampled else folder.parent / "prompts.jsonl"
    probed[name] = score(chain, folder, reference, "shapes_probe", "accuracy")
  errors = {
    bucket: score(chain, made / bucket / "reconstructions", made / bucket / "originals",
                  "psnr,ssim", None)
    for bucket in ("video", "image_128")
  }  # fmt: skip
  originals = made / "video" / "originals"
  frechet = {
    name: random_fvd(folder, originals)
    for name, folder in (
      ("video, reconstructions", made / "video" / "reconstructions"),
      ("high_samples", out / "high_samples"),
    )
  }
  results = {"probe": probed, "psnr, ssim": errors, "fvd of a random I3D": frechet,
             "seconds": chain.seconds}  # fmt: skip
  (out / "scores.json").write_text(json.dumps(results, indent=2) + "\n")
  print_tables(results)


def score(chain: Chain, samples: Path, reference: Path, metrics: str, key: str | None) -> Any:
  """What `vidgen eval` writes of these metrics."""
  path = chain.out / f"{samples.parent.name}_{samples.name}_{metrics.replace(',', '_')}.json"
  chain.once(
    f"score {path.stem}", "eval", "--samples", samples, "--reference", reference,
    "--metrics", metrics, "--json", path,
  )  # fmt: skip
  found = json.loads(path.read_text())
  return found[key] if key else found


def random_fvd(samples: Path, reference: Path) -> float:
  """Frechet distance of features of an I3D with random weights: of no published scale."""
  settings = Settings(
    samples=samples, reference=reference, clip=ClipRule(frames=16, sequence_fps=16.0),
    allow_small=True, extractors={"i3d": i3d_extractor(random_i3d(0), digest="random 0",
                                                       weights="random")},
  )  # fmt: skip
  return Session(settings, ("fvd",)).score("fvd").values["fvd"]


def print_tables(results: dict[str, Any]) -> None:
  """The probe's table, errors and distances, and what took how long."""
  print("\n| clips | " + " | ".join(CONDITIONS) + " |\n| --- |" + " --- |" * len(CONDITIONS))
  for name, accuracy in results["probe"].items():
    print(f"| {name} | " + " | ".join(f"{accuracy[c]:.0%}" for c in CONDITIONS) + " |")
  for bucket, found in results["psnr, ssim"].items():
    print(f"{bucket}: {json.dumps(found)}")
  for name, value in results["fvd of a random I3D"].items():
    print(f"FVD of a random I3D, {name}: {value:.4g}")
  seconds = results["seconds"]
  print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
  print(f"in all {sum(seconds.values()) / 60:.0f} minutes")


if __name__ == "__main__":
  sys.exit(main())
