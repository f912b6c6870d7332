"""The base video U-Net of Imagen Video against imagen-pytorch's `Unet3D`: same inputs, as many
parameters, same cores.

  pip install -e '.[oracle]'                        # torch (CPU)
  pip install --no-deps imagen-pytorch==2.1.0 && pip install einops tqdm
  python -m vidgen.dist.flags python benchmarks/unet3d.py --json FILE

Clips of 8 frames of 32 x 32 pixels, texts of 64 vectors of 768 values, float32. Both have four
levels of 64, 128, 256 and 512 channels and attention over time; `Unet3D` (dim 64, mults 1, 2, 4, 8,
all else by default) has 50.2 million parameters and 40 GFLOPs forward, vidgen's 50.3 and 34. Works:

* forward: the network at one noise level.
* train: noise, the v-prediction loss, its gradient and Adam.

Theirs adds to each level a depthwise convolution over time, gates by the mean of all positions, a
perceiver that makes 32 vectors of the text and cross-attention to these; its attention over time
is causal, and once a level. Ours attends to the text's own vectors after every block of the two
inner levels, together with the positions of the frame, and over time after every block.

Only the files of imagen-pytorch that the network is made of are imported: the rest needs packages
that are not here, and reads from the network when it is imported.

Entrants, their turns, ratios and memory are those of `benchmarks/wan.py`.
"""

import argparse
import functools
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import turns

WORKS = ("train", "forward")
ENTRANTS = ("vidgen", "torch")
FRAMES, SIDE, WORDS, TEXT = 8, 32, 64, 768
RATE, B1, B2, EPS = 1e-4, 0.9, 0.99, 1e-8
WARMUP = 2


def vidgen_entrant(work: str, args: argparse.Namespace) -> dict[str, Any]:
  """What `turns.serve` needs: "step", "parameters", "compile_seconds"."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax

  from vidgen.models.video_unet import Level, VideoUNet
  from vidgen.nn.partition import unboxed

  network = VideoUNet(
    levels=(
      Level(64, 2),
      Level(128, 2, stride=2),
      Level(256, 2, stride=2, attention="self"),
      Level(512, 2, stride=2, attention="self"),
    ),
    text_width=TEXT,
    temporal="attention",
    embedding=512,
  )
  rng = np.random.default_rng(0)
  b, t = args.batch, FRAMES
  video = jnp.asarray(rng.standard_normal((b, t, SIDE, SIDE, 3), np.float32))
  text = jnp.asarray(rng.standard_normal((b, 1, WORDS, TEXT), np.float32))
  mask = jnp.ones((b, 1, WORDS), bool)
  half = jnp.full((b, t), 0.5, jnp.float32)
  predict = functools.partial(network.apply, text=text, text_mask=mask)
  init = jax.jit(lambda key: unboxed(network.init(key, video, half, text=text, text_mask=mask)))
  params = init(jax.random.key(0))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
  if work == "forward":
    begin = time.perf_counter()
    forward = jax.jit(predict).lower(params, video, half).compile()
    seconds = time.perf_counter() - begin
    step = lambda: jax.block_until_ready(forward(params, video, half))  # noqa: E731 (one line)
    return {"step": step, "parameters": parameters, "compile_seconds": seconds}

  optimizer = optax.adam(RATE, b1=B1, b2=B2, eps=EPS)

  def loss(params: Any, x: Any, key: Any) -> Any:
    for_noise, for_time = jax.random.split(key)
    noise = jax.random.normal(for_noise, x.shape)
    angle = jax.random.uniform(for_time, (b,)) * (jnp.pi / 2)
    alpha, sigma = (f(angle)[:, None, None, None, None] for f in (jnp.cos, jnp.sin))
    level = jnp.broadcast_to(angle[:, None] / (jnp.pi / 2), (b, t))
    found = predict(params, alpha * x + sigma * noise, level)
    return jnp.mean(jnp.square(found - (alpha * noise - sigma * x)))

  def train(state: Any, x: Any) -> Any:
    params, moments, key = state
    key, here = jax.random.split(key)
    value, grads = jax.value_and_grad(loss)(params, x, here)
    updates, moments = optimizer.update(grads, moments, params)
    return (optax.apply_updates(params, updates), moments, key), value

  state = params, jax.jit(optimizer.init)(params), jax.random.key(1)
  begin = time.perf_counter()
  program = jax.jit(train, donate_argnums=0).lower(state, video).compile()
  seconds = time.perf_counter() - begin

  def one_step() -> None:
    nonlocal state
    state, value = program(state, video)
    jax.block_until_ready((state, value))

  return {"step": one_step, "parameters": parameters, "compile_seconds": seconds}


def unet3d() -> Any:
  """The class of imagen-pytorch, without what its package imports beside."""
  found: Any = importlib.util.find_spec("imagen_pytorch")
  package: Any = types.ModuleType("imagen_pytorch")
  package.__path__ = list(found.submodule_search_locations)
  t5: Any = types.ModuleType("imagen_pytorch.t5")
  t5.t5_encode_text, t5.DEFAULT_T5_NAME, t5.get_encoded_dim = None, "", lambda name: TEXT
  sys.modules |= {"imagen_pytorch": package, "imagen_pytorch.t5": t5}
  from imagen_pytorch.imagen_video import Unet3D  # type: ignore[reportMissingImports]  # see above

  return Unet3D


def torch_entrant(work: str, args: argparse.Namespace) -> dict[str, Any]:
  """As `vidgen_entrant`."""
  import torch  # type: ignore[reportMissingImports]  # of the extra `oracle`

  torch.set_num_threads(args.threads)
  torch.manual_seed(0)
  model = unet3d()(dim=64, dim_mults=(1, 2, 4, 8), text_embed_dim=TEXT)
  parameters = sum(p.numel() for p in model.parameters())
  b = args.batch
  video = torch.randn(b, 3, FRAMES, SIDE, SIDE)
  text, mask = torch.randn(b, WORDS, TEXT), torch.ones(b, WORDS, dtype=torch.bool)

  def predict(x: Any, level: Any) -> Any:
    return model(x, level, text_embeds=text, text_mask=mask)

  if work == "forward":
    model.eval()
    half = torch.full((b,), 0.5)

    def step() -> None:
      with torch.inference_mode():
        predict(video, half)
  else:
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=(B1, B2), eps=EPS, fused=True)

    def step() -> None:
      optimizer.zero_grad(set_to_none=True)
      noise, level = torch.randn_like(video), torch.rand(b)
      angle = (level * (torch.pi / 2)).view(-1, 1, 1, 1, 1)
      alpha, sigma = torch.cos(angle), torch.sin(angle)
      found = predict(alpha * video + sigma * noise, level)
      torch.nn.functional.mse_loss(found, alpha * noise - sigma * video).backward()
      optimizer.step()

  return {"step": step, "parameters": parameters, "compile_seconds": 0.0}


def entrant(args: argparse.Namespace) -> dict[str, Any]:
  """The one that `--serve` names."""
  name, work = args.serve
  return (vidgen_entrant if name == "vidgen" else torch_entrant)(work, args)


def main() -> None:
  """Runs, prints, and writes the figures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  turns.add_arguments(parser, entrants=ENTRANTS, rounds=11, batch=1)
  parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
  args = parser.parse_args()
  if args.serve:
    return turns.serve(lambda: entrant(args), warmup=WARMUP)
  results: dict[str, Any] = {
    **turns.pinned(args.threads),
    "batch": args.batch,
    "rounds": args.rounds,
    "works": {},
  }
  given = [f"--{key}={getattr(args, key)}" for key in ("threads", "batch")]
  for work in args.works:
    commands = {n: [sys.executable, __file__, "--serve", n, work, *given] for n in args.entrants}
    results["works"][work] = found = turns.compare(commands, rounds=args.rounds)
    for line in turns.lines(found):
      print(f"{work:8s} {line}")
    if args.json:
      Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
