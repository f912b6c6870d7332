"""Imagen Video's temporal super-resolution: twice the frames (section 2), three times over.

  vidgen train --config configs/imagen_video/tsr.py:1 --data DIR --workdir TSR_1
  vidgen train --config configs/imagen_video/tsr.py:1.distilled --data DIR --workdir TSR_1_8 \\
    --start-from TSR_1

Variants: 1 makes 32 frames of 24 x 40 at 6 a second, 2 makes 64 of 192 x 320 at 12, 3 makes 128 of
192 x 320 at 24, with 1.70, 0.81 and 0.62 billion parameters; tiny1, tiny2 and tiny3 have sides of
an eighth and learn ShapesWorld; each with .distilled, its student of 8 steps. Shapes, rates,
parameters and 128 steps are the paper's, as is the oscillating guidance of the first (15 and 1,
where 0 is off). Frames are mixed by convolutions. Not given by the paper: widths, blocks, attention
(1 has it, 2 and 3 read the text at the lowest resolution), the guidance of 2 and 3, optimizer,
batch, iterations, EMA, and all of distillation but its 8 steps.
"""

import ml_collections

NUMBERS = ("1", "2", "3")
VARIANTS = tuple(f"{t}{n}{d}" for t in ("", "tiny") for n in NUMBERS for d in ("", ".distilled"))

# Frames a second and shape of what is made; levels: channels, blocks, stride.
FULL = {
  "1": (6.0, (32, 24, 40), [(640, 4, 1), (1280, 5, 2), (2560, 3, 2)]),
  "2": (12.0, (64, 192, 320), [(160, 2, 2), (320, 4, 2), (640, 8, 2), (1280, 8, 2)]),
  "3": (24.0, (128, 192, 320), [(128, 2, 2), (256, 4, 2), (512, 8, 2), (1024, 10, 2)]),
}
# The same, frames of a part that is trained on, patch, guidance scale, train steps.
TINY = {
  "1": (16.0, (32, 3, 5), [(64, 2, 1)], 32, 1, 1.0, 500),
  "2": (32.0, (64, 24, 40), [(32, 1, 1), (64, 1, 2)], 8, 2, 1.0, 500),
  "3": (64.0, (128, 24, 40), [(32, 1, 1), (64, 1, 2)], 8, 2, 1.0, 500),
}
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
  return ml_collections.ConfigDict({**config, "name": f"imagen_video_tsr_{arg}", "rules": RULES})


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


def full(number: str) -> dict:
  """Defaults of the stage are the paper's, whole clips its batch shape."""
  fps, (frames, height, width), levels = FULL[number]
  shape = {"name": "video", "frames": frames, "height": height, "width": width}
  attention = "self" if number == "1" else "cross"
  levels = [{"channels": c, "blocks": b, "stride": s, "attend": "last"} for c, b, s in levels]
  for level in levels if number == "1" else levels[-1:]:
    level["attention"] = attention
  oscillating = {"threshold": "dynamic", "guidance": "oscillating", "low_scale": 2.0}
  return {
    "stage": {
      "name": "imagen_video",
      "fields": {
        "role": "temporal",
        "factor": 2,
        "network": {"levels": levels},
        "sampler": oscillating if number == "1" else {},
        "buckets": [shape],
      },
    },
    "inputs": {
      "buckets": [{**shape, "subset": "video", "fps": fps}],
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
  fps, whole, levels, part, patch, guidance, steps = TINY[number]
  shape = {"name": "video", "frames": part, "height": whole[1], "width": whole[2]}
  return {
    "stage": {
      "name": "imagen_video",
      "fields": {
        "role": "temporal",
        "factor": 2,
        "network": {
          "levels": [
            {"channels": c, "blocks": b, "stride": s, "attention": "cross", "attend": "last"}
            for c, b, s in levels
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
        "buckets": [shape],
        "whole": list(whole),
        "loss": "x",
        "dtype": "float32",
        "remat": "none",
      },
    },
    "inputs": {
      "buckets": [{**shape, "subset": "video", "fps": fps}],
      "text_length": 96,
      "cache_bytes": 2**30,
    },
    "train": {
      "steps": steps,
      "batch_size": 16,
      "ema_decay": 0.99,
      "save_every": 500,
      "eval_every": 500,
      "optimizer": {"name": "muon", "learning_rate": 8e-3, "warmup_steps": 20, "decay": "linear"},
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 64, "guidance_scale": guidance, **UNREAD},
  }
