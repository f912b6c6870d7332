"""Movie Gen Video's whole chain, small, on this machine: what `make scores` runs.

Builds ShapesWorld shards, trains the autoencoder (pictures, then clips), then on its latents the
image stage, the joint stage and the one of higher resolution, each from the one before, and the
upsampler; samples held-out captions and scores what was made. Each step is a `vidgen` command that
is printed before it runs. What was done is not done again: the same command goes on where it was
stopped. A stage's config is overridden by --STAGE.config.key=value, as
--joint.config.train.steps=100.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import ROOT, Demo

from vidgen.whole_file import whole_file, write_whole

CONFIGS = ROOT / "configs"
STAGES = {
  "tae_image": "movie_gen/tae.py:tiny_image",
  "tae": "movie_gen/tae.py:tiny",
  "image": "movie_gen/t2i_256.py:tiny",
  "joint": "movie_gen/t2v_256.py:tiny_latent",
  "high": "movie_gen/t2v_768.py:tiny_latent",
  "upsampler": "movie_gen/upsampler.py:tiny",
}
CONDITIONS = ("shape", "colour", "motion", "background", "all")
BOOK = "steps.json"  # what was done: the command of each step and the seconds it took, of all tries


class Chain(Demo):
  """The steps, each once, in a folder; how each was made is kept beside them."""

  def __init__(self, out: Path, configs: Mapping[str, str], overrides: Mapping[str, list[str]]):
    super().__init__(out)
    self.configs, self.overrides = configs, overrides
    book = out / BOOK
    self.book: dict[str, Any] = json.loads(book.read_text()) if book.exists() else {}

  @classmethod
  def begin(
    cls, out: Path, configs: Mapping[str, str], overrides: Mapping[str, list[str]]
  ) -> "Chain":
    """A chain in the folder `out`, new or its own; the configs of its stages, by name."""
    if out.exists() and not (out / BOOK).exists() and any(out.iterdir()):
      sys.exit(f"{out} exists and was not made by this script; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    return cls(out, configs, overrides)

  def once(self, name: str, *arguments: str | Path) -> None:
    """As `run`, unless it was done before; a step that was made otherwise ends it all."""
    command = [str(a) for a in arguments]
    step = self.book.setdefault(name, {"command": command, "seconds": 0.0, "done": False})
    if step["command"] != command:
      sys.exit(f"{self.out}: {name!r} was made by another command; give another --out")
    if not step["done"]:
      self._write()
      begin = time.monotonic()
      try:
        self.run(name, *command)
        step["done"] = True
      finally:
        step["seconds"] += time.monotonic() - begin
        self._write()

  def train(self, name: str, *arguments: str | Path) -> Path:
    """A stage; returns its run."""
    config = CONFIGS / self.configs[name]
    self.once(
      f"train {name}", "train", "--config", config, "--data", self.out / "data", "--workdir",
      self.out / name, *arguments, *self.overrides.get(name, []),
    )  # fmt: skip
    return self.out / name

  def score(self, samples: Path, reference: Path, metrics: str, *options: str) -> Any:
    """What `vidgen eval` writes of these metrics."""
    path = self.out / "scores" / f"{samples.parent.name}_{samples.name}_{metrics}.json"
    path.parent.mkdir(exist_ok=True)
    self.once(
      f"score {path.stem}", "eval", "--samples", samples, "--reference", reference,
      "--metrics", metrics, "--json", path, *options,
    )  # fmt: skip
    return json.loads(path.read_text())

  def _write(self) -> None:
    write_whole(self.out / BOOK, (json.dumps(self.book, indent=2) + "\n").encode())


def main() -> None:
  """Runs the chain and prints its tables."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--out", type=Path, default=Path("runs/scores"))
  parser.add_argument("--count", type=int, default=4096, help="training clips")
  parser.add_argument("--samples", type=int, default=256, help="held-out captions, and clips")
  parser.add_argument("--i3d", type=Path, help="its weights, for FVD (default: random ones)")
  parser.add_argument("--distances", type=int, default=48, help="clips for FVD")
  args, rest = parser.parse_known_args()
  chain = Chain.begin(args.out.resolve(), STAGES, overrides(parser, rest, stages=STAGES))
  data = build(chain, count=args.count)
  rebuilt = autoencoder(chain, data, count=args.samples)
  made = transformers(chain, data, count=args.samples)

  clips = {part: rebuilt / "video" / part for part in ("originals", "reconstructions")}
  probed = {name: (folder, folder.parent / "prompts.jsonl") for name, folder in clips.items()}
  probed |= {name: (folder, data) for name, folder in made.items()}
  results = {
    "probe": {
      name: chain.score(folder, reference, "shapes_probe")["accuracy"]
      for name, (folder, reference) in probed.items()
    },
    "errors": {
      bucket.name: {
        metric: score["values"]
        for metric, score in chain.score(
          bucket / "reconstructions", bucket / "originals", "psnr,ssim"
        )["scores"].items()
      }
      for bucket in sorted(path for path in rebuilt.iterdir() if path.is_dir())
    },
    "fvd": distances(
      chain,
      {"reconstructions": clips["reconstructions"], "high": made["high"]},
      reference=clips["originals"],
      i3d=args.i3d,
      count=args.distances,
    ),
    "seconds": {name: step["seconds"] for name, step in chain.book.items()},
  }
  write_whole(chain.out / "scores.json", (json.dumps(results, indent=2) + "\n").encode())
  print_tables(results)


def overrides(
  parser: argparse.ArgumentParser, words: list[str], *, stages: Mapping[str, str]
) -> dict[str, list[str]]:
  """Those of each stage; anything else ends the script with exit code 2."""
  found: dict[str, list[str]] = {}
  for word in words:
    stage, _, rest = word.removeprefix("--").partition(".")
    if stage not in stages or not rest.startswith("config.") or not word.startswith("--"):
      parser.error(f"{word}: overrides are --STAGE.config.key=value, of {', '.join(stages)}")
    found.setdefault(stage, []).append("--" + rest)
  return found


def build(chain: Chain, *, count: int) -> Path:
  """The data set."""
  data = chain.out / "data"
  chain.once(
    "build shards", "data", "build", "data/shapes_world.py:large", "--out", data,
    "--count", str(count),
  )  # fmt: skip
  return data


def autoencoder(chain: Chain, data: Path, *, count: int) -> Path:
  """Trains it, and reconstructs held-out clips and pictures."""
  images = chain.train("tae_image")
  run, made = chain.train("tae", "--start-from", images), chain.out / "reconstructed"
  chain.once(
    "reconstruct", "reconstruct", "--workdir", run, "--data", data, "--out", made,
    "--count", str(count),
  )  # fmt: skip
  return made


def transformers(chain: Chain, data: Path, *, count: int) -> dict[str, Path]:
  """Trains the stages on latents, and returns folders of their samples of held-out captions."""
  out, tae = chain.out, chain.out / "tae"
  for name in ("joint", "upsampler"):  # clips whole, and frame by frame
    chain.once(
      f"measure latents of {name}", "data", "latents", data, "--config", CONFIGS / STAGES[name],
      "--autoencoder", tae,
    )  # fmt: skip
  workdir, start = f"--config.inputs.autoencoder.workdir={tae}", []
  for name in ("image", "joint", "high"):
    cache = f"latents_{name}"
    chain.once(
      f"cache latents of {name}", "data", "latents", data, "--config", CONFIGS / STAGES[name],
      "--autoencoder", tae, "--cache", "--out", data / cache,
    )  # fmt: skip
    run = chain.train(name, workdir, f"--config.inputs.latents={cache}", *start)
    start = ["--start-from", run]
  chain.train("upsampler", workdir)
  made = {}
  for name in ("joint", "high"):
    made[name] = out / "samples" / name
    chain.once(
      f"sample {name}", "sample", "--workdir", out / name, "--out", made[name],
      "--prompts", data / "prompts" / "held_out.jsonl", "--count", str(count),
    )  # fmt: skip
  made["upsampled"] = out / "samples" / "upsampled"
  chain.once(
    "upsample", "upsample", "--workdir", out / "upsampler", "--samples", made["high"],
    "--out", made["upsampled"],
  )  # fmt: skip
  return made


def distances(
  chain: Chain, folders: Mapping[str, Path], *, reference: Path, i3d: Path | None, count: int
) -> dict[str, Any]:
  """FVD of the first clips of each folder: with random weights a distance of no published scale."""
  few = chain.out / f"first_{count}"
  for name, folder in {"originals": reference, **folders}.items():
    (few / name).mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("*.mp4"))[:count]:
      shutil.copyfile(path, few / name / path.name)
  weights = i3d or random_weights(chain.out / "random_i3d.safetensors")
  given = ("--weights", f"i3d={weights}", "--allow-small")
  scores = {
    name: chain.score(few / name, few / "originals", "fvd", *given)["scores"]["fvd"]["values"]
    for name in folders
  }
  clips = len(list((few / "originals").iterdir()))
  return {"weights": str(i3d or "random"), "clips": clips, "values": scores}


def random_weights(path: Path) -> Path:
  """I3D's, drawn from seed 0, in a file as its public ones."""
  if not path.exists():
    from safetensors.numpy import save_file

    from vidgen.evals.extractors.i3d import random_i3d
    from vidgen.interop.layout import to_theirs
    from vidgen.interop.layouts.i3d import i3d_layout
    from vidgen.models.i3d import I3D

    with whole_file(path) as temporary:
      save_file(to_theirs(random_i3d(0), i3d_layout(I3D())), temporary)
  return path


def print_probe(probe: Mapping[str, Mapping[str, float]]) -> None:
  """What the probe read in folders of clips."""
  print("\n| clips | " + " | ".join(CONDITIONS) + " |\n| --- |" + " --- |" * len(CONDITIONS))
  for name, accuracy in probe.items():
    print(f"| {name} | " + " | ".join(f"{accuracy[c]:.0%}" for c in CONDITIONS) + " |")


def print_tables(results: dict[str, Any]) -> None:
  """What the probe read, how far reconstructions are from their originals, and the time."""
  print_probe(results["probe"])
  print("\n| reconstructed | PSNR, dB | SSIM |\n| --- | --- | --- |")
  for bucket, found in results["errors"].items():
    print(f"| {bucket} | {found['psnr']['psnr']:.2f} | {found['ssim']['ssim']:.4f} |")
  fvd = results["fvd"]
  what = "Fréchet distance, I3D of random weights: no FVD" if fvd["weights"] == "random" else "FVD"
  print(f"\n| {fvd['clips']} clips against as many originals | {what} |\n| --- | --- |")
  for name, values in fvd["values"].items():
    print(f"| {name} | {values['fvd']:.4g} |")
  seconds = results["seconds"]
  print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
  print(f"in all {sum(seconds.values()) / 60:.0f} minutes")


if __name__ == "__main__":
  main()
