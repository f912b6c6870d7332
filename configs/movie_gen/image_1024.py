"""Movie Gen's image model: the video model goes on with images of 1024 pixels (its text-to-image).

  vidgen train --config configs/movie_gen/image_1024.py:30b --data DIR --workdir IMAGE_1024 \\
    --start-from T2V_768_4 --config.inputs.autoencoder.workdir=IMAGE_AE
  vidgen train --config configs/movie_gen/image_1024.py:30b.tune ... --start-from IMAGE_1024

Variants: 30b; 30b.tune, its quality tuning on a thousand or so pictures by artists, with the
paper's 6,000 steps at a constant 1e-5, 2,000 of them warm-up, and its batch of 64; 7b, the image
model from which the upsampler starts (upsampler.py). The temporal autoencoder gives way to an image
autoencoder (tae.py:image). What comes before the tuning has its resolution from the paper, and no
batch, rate or iterations; neither has 7b, whose size is the upsampler's. Meant for v5p pods
(image_1024.plans.json).
"""

import ml_collections

# layers, width, heads, MLP width; rows of the position tables.
SIZES = {
  "30b": (48, 6144, 48, 16384, [32, 96, 96]),
  "7b": (36, 3456, 27, 9216, [14, 96, 96]),
}

# What is not the defaults of training, by phase; the first is not given by the paper.
PHASES = {
  "": {
    "steps": 20_000,
    "batch_size": 1024,
    "optimizer": {"learning_rate": 2e-5},
  },
  "tune": {
    "steps": 6_000,
    "batch_size": 64,
    "optimizer": {"learning_rate": 1e-5, "warmup_steps": 2_000},
  },
}

# height, width: about 1024 x 1024 pixels each; all but the square are not given by the paper.
SHAPES = [(1024, 1024), (768, 1344), (1344, 768), (896, 1152), (1152, 896)]

VARIANTS = ("30b", "30b.tune", "7b")


def get_config(arg: str = "30b") -> ml_collections.ConfigDict:
  """The config of variant `arg`, a size with or without its phase."""
  size, _, phase = arg.partition(".")
  config = full(size, phase)
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_image_1024_{arg}"})


def full(size: str, phase: str) -> dict:
  """A model over frame-wise latents."""
  layers, width, heads, mlp_width, grid = SIZES[size]
  shapes = [
    {"name": "image" if h == w else f"image_{h}x{w}", "frames": 1, "height": h, "width": w}
    for h, w in SHAPES
  ]
  train = PHASES[phase]
  tensor = 2 if heads % 2 == 0 else 1
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": mlp_width,
        "max_grid": grid,
        "latent": {"temporal_stride": 1},
        "remat": "names",
        "buckets": shapes,
      },
    },
    "inputs": {
      # mixed by how many images there are of each shape
      "buckets": [{**s, "subset": "image", "group": "image", "fps": 16.0} for s in shapes],
      # neither is given by the paper: at most a quarter wider or taller; nothing is enlarged
      "aspect_tolerance": 0.25,
      "max_upsampling": 1.0,
    },
    "train": {**train, "accumulate": max(1, train["batch_size"] // 256), "save_every": 100},
    "topology": "v5p:4x4x8",
    "mesh": {"data": 1, "fsdp": -1, "context": 1, "tensor": tensor},
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }
