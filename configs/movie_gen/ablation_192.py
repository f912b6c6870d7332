"""Movie Gen Video's ablations: 5B at 352 x 192 pixels, clips of 4 to 8 seconds (section 3.6).

  vidgen train --config configs/movie_gen/ablation_192.py:5b --data DIR --workdir IMAGES \\
    --config.inputs.autoencoder.workdir=TAE
  vidgen train --config configs/movie_gen/ablation_192.py:5b.2 ... --start-from IMAGES

Variants: 5b, on images, with the paper's rate of 3e-4, batch of 9,216 and 96,000 steps; 5b.2, on
images and video, with its rate of 5e-5, 100,000 steps and two steps of images to a hundred of
video. The paper's batch is then 256 videos or 4,096 images; here one number holds for all buckets,
so that a step of images has 256. The 128 frames of a clip are spread over its 4 to 8 seconds. The
MLP width is not given by the paper. 128 frames are 4,224 tokens. Meant for v6e slices
(ablation_192.plans.json).
"""

import ml_collections

# Buckets: name, frames, weight. Steps, batch, micro-batches, learning rate.
PHASES = {
  "": ([("image", 1, 1.0)], 96_000, 9216, 2, 3e-4),
  "2": ([("video", 128, 1.0), ("image", 1, 0.02)], 100_000, 256, 1, 5e-5),
}

VARIANTS = ("5b", "5b.2")


def get_config(arg: str = "5b") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  if arg not in VARIANTS:
    raise ValueError(f"known are {', '.join(VARIANTS)}")
  config = full(*PHASES[arg.partition(".")[2]])
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_ablation_192_{arg}"})


def full(
  buckets: list[tuple[str, int, float]],
  steps: int,
  batch_size: int,
  accumulate: int,
  learning_rate: float,
) -> dict:
  """The same network in both phases: tables have the rows that 192 x 352 pixels need."""
  shapes = [{"name": n, "frames": t, "height": 192, "width": 352} for n, t, _ in buckets]
  inputs = [
    {**shape, "subset": name, "fps": 16.0, "weight": weight}
    for shape, (name, _, weight) in zip(shapes, buckets, strict=True)
  ]
  for bucket in inputs:
    if bucket["subset"] == "video":
      bucket |= {"rate": "spread", "min_seconds": 4.0, "max_seconds": 8.0, "min_rate": 16.0}
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {
        "layers": 32,
        "width": 3072,
        "heads": 24,
        "mlp_width": 8192,
        "max_grid": [16, 12, 22],
        "remat": "names",
        "buckets": shapes,
      },
    },
    "inputs": {"buckets": inputs, "prefix": ["fps"]},
    "train": {
      "steps": steps,
      "batch_size": batch_size,
      "accumulate": accumulate,
      "save_every": 500,
      "optimizer": {"learning_rate": learning_rate},
    },
    "topology": "v6e:8x16",
    "mesh": {"data": 1, "fsdp": -1, "context": 1, "tensor": 1},
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }
