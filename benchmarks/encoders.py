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
import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import wan

ENTRANTS = ("vidgen", "torch", "torch.compile")
SIZES = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_kv": 64, "d_ff": 2048}
VOCABULARY = 32128
TOLERANCE = 1e-4
OUTPUT = "expected.npy"

Encode = Callable[[], np.ndarray]


def texts(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
  """ids and mask of the batch."""
  ids = np.random.default_rng(0).integers(2, VOCABULARY, (args.batch, args.length))
  mask = np.ones((args.batch, args.length), bool)
  mask[1::2, args.length // 2 :] = False
  return ids.astype(np.int32), mask


def vidgen_entrant(folder: str, args: argparse.Namespace) -> dict[str, Any]:
  """What `serve` needs: "encode", "parameters", "compile_seconds"."""
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

  return {"encode": encode, "parameters": parameters, "compile_seconds": seconds}


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
  return {"encode": encode, "parameters": parameters, "compile_seconds": seconds}


def write_model(folder: str, args: argparse.Namespace) -> None:
  """A folder of random weights, with what transformers makes of the batch."""
  import torch  # type: ignore[reportMissingImports]  # of the extra `oracle`, as transformers
  import transformers  # type: ignore[reportMissingImports]  # likewise

  torch.manual_seed(0)
  config = transformers.T5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **SIZES)
  transformers.T5EncoderModel(config).save_pretrained(folder)
  expected = torch_entrant(folder, args, compiled=False)["encode"]()
  np.save(Path(folder) / OUTPUT, expected)


def serve(args: argparse.Namespace) -> None:
  """The life of an entrant: says that it is ready, and encodes for each line it gets."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # what libraries print is no answer
  entrant, folder = args.serve
  if entrant == "model":
    return write_model(folder, args)
  bare = wan.peak_rss()
  if entrant == "vidgen":
    made = vidgen_entrant(folder, args)
  else:
    made = torch_entrant(folder, args, compiled=entrant == "torch.compile")
  encode: Encode = made.pop("encode")
  mask, expected = texts(args)[1], np.load(Path(folder) / OUTPUT)
  for _ in range(wan.WARMUP):
    difference = float(np.abs(encode() - expected)[mask].max())
  print(json.dumps(made | {"bare_bytes": bare, "difference": difference}), file=answers)
  for _ in sys.stdin:
    begin, used = time.perf_counter(), time.process_time()
    encode()
    times = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - used}
    print(json.dumps(times | {"peak_bytes": wan.peak_rss()}), file=answers)


def command(name: str, folder: str, args: argparse.Namespace) -> list[str]:
  """What starts an entrant."""
  sizes = [f"--{key}={getattr(args, key)}" for key in ("batch", "length", "threads")]
  return [sys.executable, __file__, "--serve", name, folder, *sizes]


class Entrant(wan.Entrant):
  """One entrant's process; a batch for each call of `time`."""

  def __init__(self, name: str, words: list[str]):
    self._process = subprocess.Popen(
      words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.name = name
    self.facts = self._answer()
    if self.facts["difference"] > TOLERANCE:
      raise SystemExit(f"{name}: outputs differ by {self.facts['difference']}")


def compare(folder: str, args: argparse.Namespace) -> dict[str, Any]:
  """Figures of every entrant, and vidgen's ratio to each other one."""
  with contextlib.ExitStack() as stack:
    entrants = []
    for name in args.entrants:
      entrants.append(Entrant(name, command(name, folder, args)))
      stack.callback(entrants[-1].close)
    times: dict[str, list[tuple[float, float]]] = {entrant.name: [] for entrant in entrants}
    for turn in range(args.rounds):
      for entrant in entrants if turn % 2 == 0 else reversed(entrants):
        times[entrant.name].append(entrant.time())
  figures = {}
  for entrant in entrants:
    clock, cpu = zip(*times[entrant.name], strict=True)
    figures[entrant.name] = {
      **entrant.facts,
      "median_seconds": statistics.median(clock),
      "least_seconds": min(clock),
      "most_seconds": max(clock),
      "median_cpu_seconds": statistics.median(cpu),
      "seconds": clock,
      "cpu_seconds": cpu,
    }
  others = [name for name in times if name != "vidgen" and "vidgen" in times]

  def ratios(key: str) -> dict[str, float]:
    return {name: figures["vidgen"][key] / figures[name][key] for name in others}

  return {
    "entrants": figures,
    "vidgen_over": ratios("median_seconds"),
    "vidgen_over_cpu": ratios("median_cpu_seconds"),
    "vidgen_over_memory": ratios("peak_bytes"),
  }


def main() -> None:
  """Runs, prints, and writes the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--entrants", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
  parser.add_argument("--rounds", type=int, default=15, help="batches of each (default: 15)")
  parser.add_argument("--batch", type=int, default=8, help="texts (default: 8)")
  parser.add_argument("--length", type=int, default=128, help="tokens of a text (default: 128)")
  parser.add_argument("--threads", type=int, default=2, help="cores (default: 2)")
  parser.add_argument("--json", metavar="FILE", help="write the figures there")
  parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    return serve(args)
  cores = sorted(os.sched_getaffinity(0))[: args.threads]
  os.sched_setaffinity(0, cores)  # inherited by the entrants
  os.environ |= {"OMP_NUM_THREADS": str(args.threads), "JAX_PLATFORMS": "cpu"}
  os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(command("model", folder, args), check=True)
    found = compare(folder, args)
  results = {
    "cpu": wan.cpu_model(),
    "cores": len(cores),
    "versions": wan.versions() | {"transformers": importlib.metadata.version("transformers")},
    "environment": {n: os.environ.get(n, "") for n in wan.ENVIRONMENT},
    "batch": args.batch,
    "length": args.length,
    "rounds": args.rounds,
    **found,
  }
  for name, figures in found["entrants"].items():
    ratio = found["vidgen_over"].get(name)
    print(
      f"{name:14s} median {figures['median_seconds'] * 1e3:8.1f} ms "
      f"({figures['least_seconds'] * 1e3:.1f} to {figures['most_seconds'] * 1e3:.1f})  "
      f"peak {figures['peak_bytes'] / 2**20:6.0f} MiB  compiled in "
      f"{figures['compile_seconds']:5.1f} s  {figures['parameters']:,} parameters"
      + (f"  vidgen takes {ratio:.3f} of it" if ratio else "")
      + (f" ({found['vidgen_over_cpu'][name]:.3f} of the CPU time)" if ratio else "")
    )
  if args.json:
    Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
