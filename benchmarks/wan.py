"""vidgen's transformer against diffusers' WanTransformer3DModel: the same work on the same cores.

  pip install -e '.[data,oracle]'      # torch (CPU) and diffusers; torch.compile needs g++
  python -m vidgen.dist.flags python benchmarks/wan.py --works train --json FILE

Both are text-to-video transformers of 12 layers of width 512 with 8 heads and 53 million
parameters, in float32, over latents of 5 x 16 x 16 x 16 (320 tokens) and 64 text embeddings of 768:

- forward: one evaluation without gradients;
- train: a step of flow matching from given latents: noise, forward, mean squared error, backward,
  clipping by the global norm, AdamW, and the moving average of the parameters. vidgen's is its own
  `train_step` on the stage `movie_gen/t2v`, which also guards against what is not finite.

Wan's MLP has two matrices of 2048 columns, SwiGLU three: of 1368 they are as large. Wan turns
queries and keys by their positions and normalises them over all heads at once; vidgen adds learned
positions and normalises each head.

Every entrant is a process of its own, pinned to the same cores, and makes one step when it is told
to, so that they take turns and a machine whose speed drifts treats them alike. Threads that wait
sleep (OMP_WAIT_POLICY=PASSIVE, unless it is set). Ratios are those of the medians, by the clock and
of the CPU time, which other work on the machine moves less; the wait for the compiler and the
warm-up are no part of the times. All have the allocator's settings of `vidgen.dist.flags`, as
`vidgen train` does, where the script is started by `python -m vidgen.dist.flags`. Memory is the
peak of the process, imports and compiler included.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import turns

WORKS = ("forward", "train")
ENTRANTS = ("vidgen", "torch", "torch.compile")
LAYERS, WIDTH, HEADS, MLP, SWIGLU, TEXT = 12, 512, 8, 2048, 1368, 768
FRAMES, SIDE, CHANNELS, WORDS = 5, 16, 16, 64
RATE, B1, B2, EPS, DECAY, CLIP, EMA = 1e-4, 0.9, 0.95, 1e-8, 0.01, 1.0, 0.999
UNROLL = {"forward": 1, "train": LAYERS}  # layers of one turn of vidgen's scan
WARMUP = 3


def vidgen_entrant(work: str, args: argparse.Namespace) -> dict[str, Any]:
  """What `turns.serve` needs: "step", "parameters", "compile_seconds"."""
  import jax
  import numpy as np

  from vidgen.dist.mesh import make_mesh, on_mesh
  from vidgen.systems import make_stage
  from vidgen.train.experiment import from_plain
  from vidgen.train.programs import Programs

  clip = {"name": "video", "frames": 8 * FRAMES, "height": 8 * SIDE, "width": 8 * SIDE}
  experiment = from_plain(
    {
      "name": "wan",
      "stage": {
        "name": "movie_gen/t2v",
        "fields": {
          "layers": LAYERS,
          "width": WIDTH,
          "heads": HEADS,
          "mlp_width": args.swiglu,
          "max_grid": [FRAMES, SIDE // 2, SIDE // 2],
          "qk_norm": True,
          "text_streams": {"text": {"width": TEXT, "length": WORDS}},
          "buckets": [clip],
          "dtype": "float32",
          "remat": "none",
          "scan_unroll": args.unroll or UNROLL[work],
        },
      },
      "inputs": {"buckets": [clip]},
      "train": {
        "batch_size": args.batch,
        "ema_decay": EMA,
        "ema_warmup": 1,
        "optimizer": {
          "learning_rate": RATE,
          "b1": B1,
          "b2": B2,
          "eps": EPS,
          "weight_decay": DECAY,
          "clip_norm": CLIP,
        },
      },
    }
  )
  stage: Any = make_stage(experiment.stage.name, experiment.stage.fields)
  mesh = make_mesh(experiment.mesh)
  rng = np.random.default_rng(0)
  random = {
    "latents": (args.batch, FRAMES, SIDE, SIDE, CHANNELS),
    "text": (args.batch, WORDS, TEXT),
  }
  made: dict[str, Any] = {n: rng.standard_normal(s, np.float32) for n, s in random.items()}
  made["text_mask"] = np.ones((args.batch, WORDS), bool)
  made["fps"] = np.full(args.batch, 16, np.float32)
  with on_mesh(mesh, rules=experiment.rules, attention=experiment.attention):
    programs = Programs(experiment, stage=stage, mesh=mesh)
    begin = time.perf_counter()
    if work == "train":
      program = programs.train("video")
      seconds = time.perf_counter() - begin
      state = programs.init()
      parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
      batch = programs.put(made)[1]

      def step() -> None:
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready((state, metrics))
    else:
      params = jax.jit(stage.init)(jax.random.key(0))["network"]
      parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
      given = jax.device_put(
        (made["latents"], np.full(args.batch, 0.5, np.float32), made["text"], made["text_mask"])
      )

      def forward(params: Any, x: Any, t: Any, text: Any, mask: Any) -> Any:
        return stage.network.apply({"params": params}, x, t, {"text": text}, {"text": mask})

      begin = time.perf_counter()
      program = jax.jit(forward).lower(params, *given).compile()
      seconds = time.perf_counter() - begin

      def step() -> None:
        jax.block_until_ready(program(params, *given))

  return {"step": step, "parameters": parameters, "compile_seconds": seconds}


def torch_entrant(work: str, args: argparse.Namespace, *, compiled: bool) -> dict[str, Any]:
  """As `vidgen_entrant`."""
  import torch  # type: ignore[reportMissingImports]  # of the extra `oracle`, as diffusers
  from diffusers import WanTransformer3DModel  # type: ignore[reportMissingImports]  # likewise

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  model: Any = WanTransformer3DModel(
    patch_size=(1, 2, 2),
    num_attention_heads=HEADS,
    attention_head_dim=WIDTH // HEADS,
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    text_dim=TEXT,
    freq_dim=256,
    ffn_dim=MLP,
    num_layers=LAYERS,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    eps=1e-6,
    rope_max_seq_len=1024,
  )
  parameters = sum(p.numel() for p in model.parameters())
  latents = torch.randn(args.batch, CHANNELS, FRAMES, SIDE, SIDE)
  text = torch.randn(args.batch, WORDS, TEXT)
  call = torch.compile(model) if compiled else model

  def predict(x: Any, time: Any) -> Any:
    return call(
      hidden_states=x, timestep=time * 1000, encoder_hidden_states=text, return_dict=False
    )[0]

  if work == "forward":
    model.eval()
    half = torch.full((args.batch,), 0.5)

    def step() -> None:
      with torch.inference_mode():
        predict(latents, half)
  else:
    weights = list(model.parameters())
    average = [p.detach().clone() for p in weights]
    optimizer = torch.optim.AdamW(
      weights, lr=RATE, betas=(B1, B2), eps=EPS, weight_decay=DECAY, fused=True
    )

    def step() -> None:
      optimizer.zero_grad(set_to_none=True)
      noise = torch.randn_like(latents)
      time = torch.sigmoid(torch.randn(args.batch))
      t = time.view(-1, 1, 1, 1, 1)
      prediction = predict(t * latents + (1 - t) * noise, time)
      torch.nn.functional.mse_loss(prediction, latents - noise).backward()
      torch.nn.utils.clip_grad_norm_(weights, CLIP)
      optimizer.step()
      with torch.no_grad():
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - EMA)

  seconds = 0.0
  if compiled:
    begin = time.perf_counter()
    step()
    seconds = time.perf_counter() - begin
  return {"step": step, "parameters": parameters, "compile_seconds": seconds}


def entrant(args: argparse.Namespace) -> dict[str, Any]:
  """The one that `--serve` names."""
  name, work = args.serve
  if name == "vidgen":
    return vidgen_entrant(work, args)
  return torch_entrant(work, args, compiled=name == "torch.compile")


def main() -> None:
  """Runs, prints, and writes the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  turns.add_arguments(parser, entrants=ENTRANTS, rounds=11, batch=1)
  parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
  parser.add_argument("--swiglu", type=int, default=SWIGLU, help="vidgen's MLP width")
  parser.add_argument("--unroll", type=int, default=0, help="of vidgen's scan, instead of UNROLL")
  args = parser.parse_args()
  if args.serve:
    return turns.serve(lambda: entrant(args), warmup=WARMUP)
  results = {
    **turns.pinned(args.threads),
    "batch": args.batch,
    "tokens": FRAMES * (SIDE // 2) ** 2,
    "rounds": args.rounds,
    "works": {},
  }
  given = [f"--{key}={getattr(args, key)}" for key in ("threads", "batch", "swiglu", "unroll")]
  for work in args.works:
    commands = {n: [sys.executable, __file__, "--serve", n, work, *given] for n in args.entrants}
    results["works"][work] = found = turns.compare(commands, rounds=args.rounds)
    for line in turns.lines(found):
      print(f"{work:8s} {line}")
    if args.json:
      Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
