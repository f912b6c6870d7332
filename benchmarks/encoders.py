"""vidgen's T5 encoder against transformers' T5EncoderModel: the same work on the same cores.

  pip install -e '.[data,oracle]'      # torch (CPU) and transformers
  python -m vidgen.dist.flags python benchmarks/encoders.py --json FILE

T5 v1.1 of base size: 12 layers of width 768, 12 heads, a gated MLP of 2048, in float32, over 8
texts of 128 tokens without gradients; the second half of every other text is padding. transformers
draws the weights and writes a folder, which vidgen reads as any other encoder; the run ends if
their outputs differ by more than 1e-4.

Every entrant is a process of its own, pinned to the same cores, and encodes one batch when it is
told to, so that they take turns (see `wan.py`, whose rules on threads, ratios and memory hold).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import turns

ENTRANTS = ("vidgen", "torch", "torch.compile")
SIZES = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_kv": 64, "d_ff": 2048}
VOCABULARY = 32128
TOLERANCE = 1e-4
OUTPUT = "expected.npy"
WARMUP = 3


def texts(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
  """ids and mask of the batch."""
  ids = np.random.default_rng(0).integers(2, VOCABULARY, (args.batch, args.length))
  mask = np.ones((args.batch, args.length), bool)
  mask[1::2, args.length // 2 :] = False
  return ids.astype(np.int32), mask


def vidgen_entrant(folder: str, args: argparse.Namespace) -> dict[str, Any]:
  """What `turns.serve` needs: "step", "parameters", "compile_seconds"."""
  import jax

  from vidgen.interop import load_text_encoder

  encoder = load_text_encoder(folder)
  given = jax.device_put((encoder.params, *texts(args)))
  begin = time.perf_counter()
  program = jax.jit(encoder.apply).lower(*given).compile()
  seconds = time.perf_counter() - begin
  parameters = sum(leaf.size for leaf in jax.tree.leaves(encoder.params))

  def encode() -> np.ndarray:
    return np.asarray(program(*given))

  return {"step": encode, "parameters": parameters, "compile_seconds": seconds}


def torch_entrant(folder: str, args: argparse.Namespace, *, compiled: bool) -> dict[str, Any]:
  """As `vidgen_entrant`."""
  import torch  # type: ignore[reportMissingImports]  # of the extra `oracle`, as transformers
  import transformers  # type: ignore[reportMissingImports]  # likewise

  torch.set_num_threads(args.threads)
  model = transformers.T5EncoderModel.from_pretrained(folder).eval()
  ids, mask = (torch.from_numpy(x.astype(np.int64)) for x in texts(args))
  call = torch.compile(model) if compiled else model

  def encode() -> np.ndarray:
    with torch.inference_mode():
      return call(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()

  seconds = 0.0
  if compiled:
    begin = time.perf_counter()
    encode()
    seconds = time.perf_counter() - begin
  parameters = sum(p.numel() for p in model.parameters())
  return {"step": encode, "parameters": parameters, "compile_seconds": seconds}


def write_model(folder: str, args: argparse.Namespace) -> None:
  """A folder of random weights, with what transformers makes of the batch."""
  import torch  # type: ignore[reportMissingImports]  # of the extra `oracle`, as transformers
  import transformers  # type: ignore[reportMissingImports]  # likewise

  torch.manual_seed(0)
  config = transformers.T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **SIZES)
  transformers.T5EncoderModel(config).save_pretrained(folder)
  expected = torch_entrant(folder, args, compiled=False)["step"]()
  np.save(Path(folder) / OUTPUT, expected)


def entrant(args: argparse.Namespace) -> dict[str, Any]:
  """The one that `--serve` names, if it computes what the model's writer did."""
  name, folder = args.serve
  if name == "vidgen":
    made = vidgen_entrant(folder, args)
  else:
    made = torch_entrant(folder, args, compiled=name == "torch.compile")
  expected = np.load(Path(folder) / OUTPUT)
  difference = float(np.abs(made["step"]() - expected)[texts(args)[1]].max())
  if difference > TOLERANCE:
    raise SystemExit(f"{name}: outputs differ by {difference}")
  return made | {"difference": difference}


def command(name: str, folder: str, args: argparse.Namespace) -> list[str]:
  """What starts an entrant."""
  sizes = [f"--{key}={getattr(args, key)}" for key in ("batch", "length", "threads")]
  return [sys.executable, __file__, "--serve", name, folder, *sizes]


def main() -> None:
  """Runs, prints, and writes the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  turns.add_arguments(parser, entrants=ENTRANTS, rounds=15, batch=8)
  parser.add_argument("--length", type=int, default=128, help="tokens of a text (default: 128)")
  args = parser.parse_args()
  if args.serve and args.serve[0] == "model":
    return write_model(args.serve[1], args)
  if args.serve:
    return turns.serve(lambda: entrant(args), warmup=WARMUP)
  machine = turns.pinned(args.threads)
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(command("model", folder, args), check=True)
    commands = {name: command(name, folder, args) for name in args.entrants}
    found = turns.compare(commands, rounds=args.rounds)
  print("\n".join(turns.lines(found)))
  if args.json:
    asked = {key: getattr(args, key) for key in ("batch", "length", "rounds")}
    Path(args.json).write_text(json.dumps({**machine, **asked, **found}, indent=2) + "\n")


if __name__ == "__main__":
  main()
