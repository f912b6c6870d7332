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
import json
import sys
import time
from pathlib import Path
from typing import Any

import turns

WORKS = ("64", "224")
ENTRANTS = ("vidgen", "torch", "torch channels last")
FRAMES = 16
WARMUP = 2
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"


def clips(work: str, args: argparse.Namespace) -> Any:
  """uint8 [b, t, h, w, 3]."""
  import numpy as np

  shape = (args.batch, FRAMES, int(work), int(work), 3)
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def vidgen_entrant(work: str, args: argparse.Namespace) -> dict[str, Any]:
  """What `turns.serve` needs: "step", "compile_seconds"."""
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


def entrant(args: argparse.Namespace) -> dict[str, Any]:
  """The one that `--serve` names."""
  name, work = args.serve
  return vidgen_entrant(work, args) if name == "vidgen" else torch_entrant(work, args, layout=name)


def main() -> None:
  """Runs, prints, and writes the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  turns.add_arguments(parser, entrants=ENTRANTS, rounds=9, batch=1)
  parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
  parser.add_argument("--torch-python", default=sys.executable, help="the Python that has torch")
  args = parser.parse_args()
  if args.serve:
    return turns.serve(lambda: entrant(args), warmup=WARMUP)
  results: dict[str, Any] = {
    **turns.pinned(args.threads),
    "batch": args.batch,
    "frames": FRAMES,
    "rounds": args.rounds,
    "works": {},
  }
  given = [f"--threads={args.threads}", f"--batch={args.batch}"]
  for work in args.works:
    commands = {
      name: [
        sys.executable if name == "vidgen" else args.torch_python,
        *(__file__, "--serve", name, work, *given),
      ]
      for name in args.entrants
    }
    results["works"][work] = found = turns.compare(commands, rounds=args.rounds)
    for line in turns.lines(found):
      print(f"{work:4s} {line}")
    if args.json:
      Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
