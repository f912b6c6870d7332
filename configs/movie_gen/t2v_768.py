"""Movie Gen Video at 768 pixels: text-to-image and text-to-video, jointly (section 3.1.4).

  vidgen train --config configs/movie_gen/t2v_768.py:tiny --data DIR --workdir DIR

Variants: 30b (the paper's model), 5b, 1b, and tiny, which learns ShapesWorld at 32 x 32 pixels.
All but tiny eat latents (16 channels, stride 8 x 8 x 8) and the embeddings of UL2, ByT5 and
MetaCLIP, computed beforehand. A batch never mixes shapes: three lengths in five aspect ratios, of
which the paper names the square and 1024 x 576 either way. The first and longest phase of Table 3
is stated here; later phases lower the learning rate (3e-5, 2e-5, 1e-5) and the batch (768, 512)
and use context parallelism of 2. Meant for v5p or H100 pods. One forward pass of 30b over 256
frames of 768 x 768 (73,728 tokens) is 10.21 PFLOP by the network's own formula.
"""

import ml_collections

# layers, width, heads, MLP width. The MLP width of 5b, and all of 1b, are not given by the paper.
SIZES = {
  "1b": (24, 1536, 16, 4096),
  "5b": (32, 3072, 24, 8192),
  "30b": (48, 6144, 48, 16384),
}

# The devices a size is meant for, and how it lies on them: context, tensor, micro-batches of a
# step, what the backward pass keeps. A shard of the batch has one video of 73,728 tokens at a time.
# Plans for other devices are in t2v_768.plans.json.
DEVICES = {
  "1b": ("v5e:16x16", 4, 1, 24, "attention"),
  "5b": ("v6e:16x16", 4, 1, 24, "attention"),
  "30b": ("v5p:8x8x16", 4, 2, 12, "names"),
}

# height, width; the last two are not given by the paper.
SHAPES = [(768, 768), (576, 1024), (1024, 576), (640, 896), (896, 640)]

RULES = [
  ["batch", ["data", "fsdp"]],
  ["tokens", ["context", "tensor"]],
  ["sequence", "context"],
  ["embed", "fsdp"],
  ["heads", "tensor"],
  ["mlp", "tensor"],
  ["embed_out", "tensor"],
]


def get_config(arg: str = "30b") -> ml_collections.ConfigDict:
  """The config of variant `arg`: 1b, 5b, 30b or tiny."""
  config = tiny() if arg == "tiny" else full(*SIZES[arg], *DEVICES[arg])
  config["name"] = f"movie_gen_t2v_768_{arg}"
  return ml_collections.ConfigDict(config)


def bucket(name: str, frames: int, height: int, width: int, *, fps: float = 16.0) -> dict:
  """A batch shape of the input pipeline; in all, one image to ten videos."""
  image = name.startswith("image")
  kind = {"subset": "image", "weight": 0.3} if image else {"subset": "video", "weight": 1.0}
  return {"name": name, **kind, "frames": frames, "height": height, "width": width, "fps": fps}


def shape(bucket: dict) -> dict:
  """The same batch shape, as the stage knows it."""
  return {key: bucket[key] for key in ("name", "frames", "height", "width")}


def full(
  layers: int,
  width: int,
  heads: int,
  mlp_width: int,
  topology: str,
  context: int,
  tensor: int,
  accumulate: int,
  remat: str,
) -> dict:
  """A model over latents; defaults of the stage are the paper's."""
  buckets = []
  for frames in (256, 192, 128, 1):
    kind = "image" if frames == 1 else "video"
    for h, w in SHAPES:
      plain = frames in (256, 1) and h == w  # the two shapes that go by the plain names
      name = kind if plain else f"{kind}_{frames}x{h}x{w}"
      buckets.append(bucket(name, frames, h, w))
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": mlp_width,
        "max_grid": [32, 96, 96],
        "remat": remat,
        "buckets": [shape(b) for b in buckets],
      },
    },
    "inputs": {"buckets": buckets},
    "train": {
      "steps": 19_600,
      "batch_size": 1536,
      "accumulate": accumulate,
      "save_every": 20,  # a step takes minutes
      "eval_every": 100,
      "hang_seconds": 7200,
      "optimizer": {"learning_rate": 6e-5},
    },
    "topology": topology,
    "mesh": {"data": 1, "fsdp": -1, "context": context, "tensor": tensor},
    "rules": RULES,
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }


def tiny() -> dict:
  """ShapesWorld, 8 frames of 32 x 32 pixels; the recipe of t2v_256's tiny, not tuned anew."""
  buckets = [bucket("video", 8, 32, 32, fps=4.0)]
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {
        "layers": 6,
        "width": 192,
        "heads": 6,
        "mlp_width": 512,
        "patch": [8, 4, 4],
        "max_grid": [1, 8, 8],
        "position_scale": 0.5,
        "pooled_text": True,
        "latent": None,
        "text_streams": {},
        "text_encoder": {"length": 96, "words": 16, "width": 128},
        "buckets": [shape(b) for b in buckets],
        "prediction": "data",
        "noise_floor": 0.5,
        "time_loc": -0.3,
        "dtype": "float32",
        "remat": "none",
        "scan_unroll": 6,
      },
    },
    "inputs": {"buckets": buckets, "text_length": 96, "cache_bytes": 2**28},
    "train": {
      "steps": 4000,
      "batch_size": 64,
      "ema_decay": 0.99,
      "optimizer": {
        "name": "muon",
        "learning_rate": 8e-3,
        "warmup_steps": 20,
        "decay": "linear",
        "b2": 0.99,
      },
    },
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "rules": RULES,
    "sample": {"steps": 32, "guidance_scale": 4.0, "linear_steps": 64},
  }
