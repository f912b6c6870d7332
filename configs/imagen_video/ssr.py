"""Imagen Video's spatial super-resolution (section 2): sides twice, four times, four times.

  vidgen train --config configs/imagen_video/ssr.py:1 --data DIR --workdir SSR_1
  vidgen train --config configs/imagen_video/ssr.py:1.distilled --data DIR --workdir SSR_1_8 \\
    --start-from SSR_1

Variants: 1 makes 32 frames of 48 x 80 at 6 a second, 2 makes 32 of 192 x 320 at 6, 3 makes 128 of
768 x 1280 at 24, with 1.43, 1.17 and 0.33 billion parameters; tiny1, tiny2 and tiny3 have sides of
an eighth and learn ShapesWorld; each with .distilled, its student of 8 steps. 3 is fully
convolutional, with norms of single positions, is trained on 32 frames of random crops, and makes
whole frames, their rows spread over devices (vidgen cascade --context N). Shapes, rates,
parameters, crops and 128 steps are the paper's, as is the oscillating guidance of the first (15 and
1, where 0 is off). Frames are mixed by convolutions. Not given by the paper: widths, blocks, the
size of crops, the guidance of 2 and 3, optimizer, batch, iterations, EMA, and all of distillation
but its 8 steps.
"""

import ml_collections

NUMBERS = ("1", "2", "3")
VARIANTS = tuple(f"{t}{n}{d}" for t in ("", "tiny") for n in NUMBERS for d in ("", ".distilled"))

# Factor, frames a second and shape of what is made; that of a part that is trained on; levels:
# channels, blocks, stride, attention.
FULL = {
  "1": (2, 6.0, (32, 48, 80), (32, 48, 80), [
    (256, 2, 1, "none"), (512, 4, 2, "none"), (1024, 8, 2, "self"), (1536, 8, 2, "self")]),
  "2": (4, 6.0, (32, 192, 320), (32, 192, 320), [
    (192, 2, 2, "none"), (384, 4, 2, "none"), (768, 8, 2, "none"), (1536, 8, 2, "self")]),
  "3": (4, 24.0, (128, 768, 1280), (32, 192, 192), [
    (128, 2, 2, "none"), (256, 4, 2, "none"), (512, 8, 2, "none"), (768, 7, 2, "cross")]),
}  # fmt: skip
# The same; patch, guidance scale, train steps, batch, packs of images to a batch of clips.
TINY = {
  "1": (2, 16.0, (32, 6, 10), (4, 6, 10), [(64, 2, 1, "self")], 1, 2.0, 2000, 32, 3.0),
  "2": (4, 16.0, (32, 24, 40), (4, 24, 40), [
    (48, 1, 1, "none"), (96, 2, 2, "self")], 2, 1.0, 1500, 16, 3.0),
  "3": (4, 64.0, (128, 96, 160), (8, 48, 80), [(32, 1, 1, "cross")], 4, 1.0, 400, 16, 0),
}  # fmt: skip
# Rounds of distillation: train steps of the first, of each other, sampler steps at the start,
# learning rate, which falls to zero in each.
FULL_ROUNDS, TINY_ROUNDS = (50_000, 50_000, 128, 5e-5), (60, 60, 64, 2e-3)

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


def get_config(arg: str = "1") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  if arg not in VARIANTS:
    raise ValueError(f"the variants are {', '.join(VARIANTS)}")
  size, _, kind = arg.partition(".")
  number, small = size.removeprefix("tiny"), size.startswith("tiny")
  config = tiny(number) if small else full(number)
  if kind == "distilled":
    distilled(config, *(TINY_ROUNDS if small else FULL_ROUNDS))
  return ml_collections.ConfigDict({**config, "name": f"imagen_video_ssr_{arg}", "rules": RULES})


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


def bucket(number: str, shape: dict, *, fps: float, whole: tuple) -> dict:
  """A batch shape of the input pipeline: whole frames, or crops of them."""
  crop = {"cover": list(whole[1:])} if number == "3" else {}
  return {**shape, "subset": "video", "fps": fps, **crop}


def full(number: str) -> dict:
  """Defaults of the stage are the paper's."""
  factor, fps, whole, part, levels = FULL[number]
  shape = {"name": "video", "frames": part[0], "height": part[1], "width": part[2]}
  oscillating = {"threshold": "dynamic", "guidance": "oscillating", "low_scale": 2.0}
  return {
    "stage": {
      "name": "imagen_video",
      "fields": {
        "role": "spatial",
        "factor": factor,
        "network": {
          "levels": [
            {"channels": c, "blocks": b, "stride": s, "attention": a, "attend": "last"}
            for c, b, s, a in levels
          ],
          "groups": 0 if number == "3" else 32,
        },
        "sampler": oscillating if number == "1" else {},
        "buckets": [shape],
        "whole": list(whole),
      },
    },
    "inputs": {
      "buckets": [bucket(number, shape, fps=fps, whole=whole)],
      "spatial_crop": "random" if number == "3" else "center",
      "encoders": {"t5": {"length": 128}},
      "embeddings": "t5",
      **CHOICE,
    },
    "train": {
      "steps": 500_000,
      "batch_size": 512,
      "save_every": 500,
      "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10_000, "b2": 0.99},
    },
    "topology": "v5p:4x4x8",
    "mesh": {"data": -1, "fsdp": 32, "context": 1, "tensor": 1},
    "sample": {
      "steps": 128,
      "guidance_scale": 16.0 if number == "1" else 7.0,
      **UNREAD,
    },
  }


def tiny(number: str) -> dict:
  """ShapesWorld; frames are mixed near by, so that parts of clips are enough to train on."""
  factor, fps, whole, part, levels, patch, guidance, steps, batch, images = TINY[number]
  sides = {"height": part[1], "width": part[2]}
  shapes = [{"name": "video", "frames": part[0], **sides}]
  buckets = [bucket(number, shapes[0], fps=fps, whole=whole)]
  if images:  # packs of as many, in rows of the same shape
    shapes[0]["captions"] = buckets[0]["captions"] = part[0]
    shapes.append({**shapes[0], "name": "image", "frames": 1, "images": part[0] - 1})
    buckets.append({**shapes[1], "subset": "image", "fps": fps, "weight": images})
  return {
    "stage": {
      "name": "imagen_video",
      "fields": {
        "role": "spatial",
        "factor": factor,
        "network": {
          "levels": [
            {"channels": c, "blocks": b, "stride": s, "attention": a, "attend": "last"}
            for c, b, s, a in levels
          ],
          "patch": patch,
          "head_size": 32,
          "groups": 0,
          "embedding": 128,
          "residual": "plain",
          "scan": False,
        },
        "sampler": {"method": "ddim", "augmentation_snr": 40.0},
        "text_streams": {},
        "text_encoder": {"length": 96, "words": 16, "width": 64},
        "buckets": shapes,
        "whole": list(whole),
        "loss": "x",
        "dtype": "float32",
        "remat": "none",
      },
    },
    "inputs": {
      "buckets": buckets,
      "spatial_crop": "random" if number == "3" else "center",
      "text_length": 96,
      "cache_bytes": 0 if number == "3" else 2**30,
    },
    "train": {
      "steps": steps,
      "batch_size": batch,
      "ema_decay": 0.99,
      "save_every": 500,
      "eval_every": 500,
      "optimizer": {"name": "muon", "learning_rate": 5e-3, "warmup_steps": 20, "decay": "linear"},
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 64, "guidance_scale": guidance, **UNREAD},
  }
