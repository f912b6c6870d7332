"""Imagen Video's base model: 16 frames of 24 x 40 at 3 a second, from text (section 2).

  vidgen train --config configs/imagen_video/base.py:full --data DIR --workdir BASE
  vidgen train --config configs/imagen_video/base.py:full.distilled --data DIR --workdir BASE_8 \\
    --start-from BASE

Variants: full, 5.6B parameters; tiny, 16 frames of 3 x 5 pixels of ShapesWorld, and tiny.video,
which trains on clips alone; each with .distilled, its student of 8 steps. Shapes, rates,
parameters, steps and oscillating guidance of 15 and 1 (in the form in which 0 is off: 16 and 2
here) are the paper's. It has temporal attention, the other models have convolutions. Clips and
packs of 16 images share one step, with a caption each. Not given by the paper: widths, blocks, the
share of images, optimizer, batch, iterations, EMA, and all of distillation but its 8 steps.
"""

import ml_collections

VARIANTS = ("full", "full.distilled", "tiny", "tiny.distilled", "tiny.video")

# Rounds of distillation: train steps of the first, of each other, sampler steps at the start,
# learning rate, which falls to zero in each.
FULL, TINY = (50_000, 50_000, 256, 5e-5), (150, 80, 128, 2e-3)

UNREAD = {"schedule": "linear"}  # flow matching's, whose default refuses so many steps

# Sources that would be enlarged, or are not about as wide, are left out: not given by the paper.
CHOICE = {"max_upsampling": 1.0, "aspect_tolerance": 0.25}

# A kernel that has too few inputs to be split, as the first of all has, is split by its outputs.
RULES = [
  ["batch", ["data", "fsdp"]],
  ["rows", "context"],
  ["tokens", ["context", "tensor"]],
  ["sequence", "context"],
  ["embed", "fsdp"],
  ["heads", "tensor"],
  ["mlp", "tensor"],
  ["embed_out", "fsdp"],
  ["embed_out", "tensor"],
]


def get_config(arg: str = "full") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  if arg not in VARIANTS:
    raise ValueError(f"the variants are {', '.join(VARIANTS)}")
  size, _, kind = arg.partition(".")
  config = {"full": full, "tiny": tiny}[size](images=kind != "video")
  if kind == "distilled":
    distilled(config, *(FULL if size == "full" else TINY))
  return ml_collections.ConfigDict({**config, "name": f"imagen_video_base_{arg}", "rules": RULES})


def distilled(config: dict, guidance_steps: int, round_steps: int, start: int, rate: float) -> None:
  """Makes a student's config of a teacher's."""
  rounds = (start // 8).bit_length() - 1
  scale = config["sample"]["guidance_scale"]
  config["stage"]["fields"]["distillation"] = {
    "guidance_steps": guidance_steps,
    "round_steps": round_steps,
    "start": start,
    "scales": [1.0, scale],
  }
  config["train"] |= {"steps": guidance_steps + rounds * round_steps, "ema_decay": 0.0}
  restarts = [guidance_steps + i * round_steps for i in range(rounds)]
  config["train"]["optimizer"] |= {
    "learning_rate": rate,
    "warmup_steps": 0,
    "decay": "linear",
    "restarts": restarts,
  }
  config["sample"] |= {"steps": 8}


def full(*, images: bool) -> dict:
  """5.61 billion parameters; defaults of the stage are the paper's."""
  size = {"height": 24, "width": 40}
  shapes = [{"name": "video", "frames": 16, **size, "captions": 16 if images else 0}]
  buckets = [{**shapes[0], "subset": "video", "fps": 3.0}]
  if images:
    shapes.append({"name": "image", "frames": 1, "images": 15, "captions": 16, **size})
    buckets.append({**shapes[1], "subset": "image", "fps": 3.0, "weight": 0.5})
  levels = [
    {"channels": channels, "blocks": 3, "stride": stride, "attention": "self"}
    for channels, stride in ((1152, 1), (2304, 2), (4608, 2))
  ]
  return {
    "stage": {
      "name": "imagen_video",
      "fields": {
        "network": {"levels": levels, "temporal": "attention"},
        "sampler": {"threshold": "dynamic", "guidance": "oscillating", "low_scale": 2.0},
        "buckets": shapes,
      },
    },
    "inputs": {
      "buckets": buckets,
      "encoders": {"t5": {"length": 128}},
      "embeddings": "t5",
      **CHOICE,
    },
    "train": {
      "steps": 1_000_000,
      "batch_size": 1024,
      "save_every": 500,
      "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10_000, "b2": 0.99},
    },
    "topology": "v5p:4x4x8",
    "mesh": {"data": 1, "fsdp": -1, "context": 1, "tensor": 1},
    "sample": {"steps": 256, "guidance_scale": 16.0, **UNREAD},
  }


def tiny(*, images: bool) -> dict:
  """ShapesWorld at 8 frames a second; an image is a clip of one frame."""
  shape = {"name": "video", "frames": 16, "height": 3, "width": 5, "images": 4 if images else 0}
  return {
    "stage": {
      "name": "imagen_video",
      "fields": {
        "network": {
          "levels": [{"channels": 96, "blocks": 2, "attention": "self"}],
          "temporal": "attention",
          "head_size": 32,
          "groups": 0,
          "residual": "plain",
          "places": True,
          "scan": False,
        },
        "sampler": {"method": "ddim"},
        "text_streams": {},
        "text_encoder": {"length": 96, "words": 16, "width": 96},
        "buckets": [shape],
        "loss": "x",
        "dtype": "float32",
        "remat": "none",
      },
    },
    "inputs": {
      "buckets": [{**shape, "subset": "video", "fps": 8.0}],
      "text_length": 96,
      "cache_bytes": 2**28,
      "temporal_crop": "start",
    },
    "train": {
      "steps": 1000,
      "batch_size": 32,
      "ema_decay": 0.99,
      "save_every": 500,
      "eval_every": 500,
      "optimizer": {"name": "muon", "learning_rate": 8e-3, "warmup_steps": 20, "decay": "linear"},
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 128, "guidance_scale": 3.0, **UNREAD},
  }
