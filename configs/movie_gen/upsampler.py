"""Movie Gen's spatial upsampler: 14 frames of 1080 x 1920 from a small clip (section 3.1.5).

  vidgen train --config configs/movie_gen/upsampler.py:7b --data DIR --workdir UPSAMPLER \\
    --start-from IMAGE_7B --config.inputs.autoencoder.workdir=IMAGE_AE
  vidgen upsample --workdir UPSAMPLER --samples DIR --out DIR

Variants: 7b; tiny, from 64 x 64 to 128 x 128 pixels of ShapesWorld, on the frame-wise latents of
tae.py's tiny. 14 frames at 24 per second, the second-order degradations, a share of them the
autoencoder's reconstructions instead, and 20 sampling steps are the paper's; the share, layers and
widths, batch, rate, iterations, schedule and guidance are not given by it. It starts from an image
model of 1024 pixels (image_1024.py:7b). 1080 rows are 135 latents, which the network sees as 136:
68 x 120 tokens a frame, 114,240 in all, more than the text-to-video model has. Meant for v5p or
H100 pods (upsampler.plans.json).
"""

import ml_collections

VARIANTS = ("7b", "tiny")


def get_config(arg: str = "7b") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  config = {"7b": full, "tiny": tiny}[arg]()
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_upsampler_{arg}"})


def inputs(shape: dict, *, fps: float, factor: float, artifacts: float) -> dict:
  """Clips, their small spoilt copies, and frame-wise latents of both."""
  return {
    "buckets": [{**shape, "subset": "video", "fps": fps}],
    "degradation": {"factor": factor, "artifacts": artifacts},
    "autoencoder": {"frames": "each"},
  }


def full() -> dict:
  """Defaults of the stage are the 7B model."""
  shape = {"name": "video", "frames": 14, "height": 1080, "width": 1920}
  return {
    "stage": {"name": "movie_gen/upsampler", "fields": {"remat": "attention", "buckets": [shape]}},
    "inputs": inputs(shape, fps=24.0, factor=1.875, artifacts=0.25),
    "train": {
      "steps": 20_000,
      "batch_size": 32,
      "save_every": 200,
      "optimizer": {"learning_rate": 2e-5},
    },
    # the image model's tables: as many rows as 1024 pixels need, further ones are drawn
    "start": {"positions": "keep"},
    "topology": "v5p:4x4x8",
    "mesh": {"data": 1, "fsdp": -1, "context": 4, "tensor": 1},
    "sample": {"steps": 20, "guidance_scale": 1.0, "schedule": "linear"},
  }


def tiny() -> dict:
  """4 frames of 16 x 16 latents at a time, 2 of them in the next window too."""
  shape = {"name": "video", "frames": 4, "height": 128, "width": 128}
  return {
    "stage": {
      "name": "movie_gen/upsampler",
      "fields": {
        "layers": 4,
        "width": 128,
        "heads": 4,
        "mlp_width": 352,
        "patch": [1, 2, 2],
        "max_grid": [4, 8, 8],
        "position_scale": 0.5,
        "pooled_text": True,
        "text_streams": {},
        "text_encoder": {"length": 96, "words": 16, "width": 128},
        "buckets": [shape],
        "overlap": 2,
        "prediction": "data",
        "noise_floor": 0.5,
        "dtype": "float32",
        "remat": "none",
        "scan_unroll": 4,
      },
    },
    "inputs": {
      **inputs(shape, fps=16.0, factor=2.0, artifacts=0.25),
      "text_length": 96,
      "cache_bytes": 2**28,
    },
    "train": {
      "steps": 500,
      "batch_size": 16,
      "ema_decay": 0.99,
      "save_every": 200,
      "optimizer": {"name": "muon", "learning_rate": 8e-3, "warmup_steps": 20, "decay": "linear"},
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 20, "guidance_scale": 1.0, "schedule": "linear"},
  }
