"""Movie Gen Video at 768 pixels: text-to-image and text-to-video, jointly (section 3.1.4).

  vidgen train --config configs/movie_gen/t2v_768.py:tiny --data DIR --workdir DIR
  vidgen train --config configs/movie_gen/t2v_768.py:30b --data DIR --workdir T2V_768 \\
    --start-from T2V_256_2 --config.inputs.autoencoder.workdir=TAE
  vidgen train --config configs/movie_gen/t2v_768.py:30b.2 ... --start-from T2V_768

Variants: 30b (the paper's model), and 30b.2, 30b.3 and 30b.4, its later phases, with the learning
rates, batches and iterations of Table 3; 5b, 1b; tiny, which learns ShapesWorld at 32 x 32 pixels;
tiny_latent, at 64 x 64 in the latents of tae.py's tiny, starting from t2v_256.py's. Full sizes eat
latents (16 channels, stride 8 x 8 x 8) and the embeddings of UL2, ByT5 and MetaCLIP. A batch never
mixes shapes: three lengths in five aspect ratios, of which the paper names the square and 1024 x
576 either way, and images, one to ten videos; a clip goes to the shape of its length (4 to 16
seconds) and the nearest ratio. The position tables are spread over three times as many rows. The
paper lowers the rate whenever the loss on held-out clips is flat, and has context parallelism of 2
from the third phase; here all phases lie on the devices in the same way. Meant for v5p or H100 pods
(t2v_768.plans.json). One forward pass of 30b over 256 frames of 768 x 768 (73,728 tokens) is 10.21
PFLOP by the network's own formula.
"""

import ml_collections

# layers, width, heads, MLP width. The MLP width of 5b, and all of 1b, are not given by the paper.
SIZES = {
  "1b": (24, 1536, 16, 4096),
  "5b": (32, 3072, 24, 8192),
  "30b": (48, 6144, 48, 16384),
}

# The devices a size is meant for, and how it lies on them: context, tensor, micro-batches of 1536
# (a shard of the batch has one video of 73,728 tokens at a time), what the backward pass keeps.
# Plans for other devices are in t2v_768.plans.json.
DEVICES = {
  "1b": ("v5e:16x16", 4, 1, 24, "attention"),
  "5b": ("v6e:16x16", 4, 1, 24, "attention"),
  "30b": ("v5p:8x8x16", 4, 2, 12, "names"),
}

# Steps, batch, learning rate.
PHASES = {
  "": (19_600, 1536, 6e-5),
  "2": (11_000, 1536, 3e-5),
  "3": (15_900, 768, 2e-5),
  "4": (28_000, 512, 1e-5),
}

# height, width; the last two are not given by the paper.
SHAPES = [(768, 768), (576, 1024), (1024, 576), (640, 896), (896, 640)]

# Seconds of the clips of so many frames, spread over all of a clip: 32 to 16 of them a second. Of
# clips longer than 16 s so many seconds are cut.
LENGTHS = {128: (4.0, 8.0), 192: (8.0, 12.0), 256: (12.0, 0.0)}

# A clip goes to the nearest aspect ratio, if it is not a quarter wider or taller still (not given
# by the paper); buckets of images, and of clips, are mixed by how many samples they have.
# Nothing is enlarged.
CHOICE = {"aspect_tolerance": 0.25, "max_upsampling": 1.0}

VARIANTS = ("30b", "30b.2", "30b.3", "30b.4", "5b", "1b", "tiny", "tiny_latent")

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
  """The config of variant `arg`, a size with or without its phase, or a tiny one."""
  size, _, phase = arg.partition(".")
  tinies = {"tiny": tiny, "tiny_latent": tiny_latent}
  config = tinies[arg]() if arg in tinies else full(size, PHASES[phase])
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_t2v_768_{arg}", "rules": RULES})


def bucket(name: str, frames: int, height: int, width: int, *, fps: float = 16.0) -> dict:
  """A batch shape of the input pipeline; in all, one image to ten videos."""
  image = name.startswith("image")
  kind = {"subset": "image", "weight": 0.3} if image else {"subset": "video", "weight": 1.0}
  return {"name": name, **kind, "frames": frames, "height": height, "width": width, "fps": fps}


def choice(frames: int, group: str) -> dict:
  """Which clips are for a bucket of so many frames; 16 frames a second is the paper's least."""
  if frames == 1:
    return {"group": group}
  low, high = LENGTHS[frames]
  return {"group": group, "rate": "spread", "min_seconds": low, "max_seconds": high, "min_rate": 16}


def shape(bucket: dict) -> dict:
  """The same batch shape, as the stage knows it."""
  return {key: bucket[key] for key in ("name", "frames", "height", "width")}


def full(size: str, phase: tuple[int, int, float]) -> dict:
  """A model over latents; defaults of the stage are the paper's."""
  layers, width, heads, mlp_width = SIZES[size]
  topology, context, tensor, parts, remat = DEVICES[size]
  steps, batch_size, learning_rate = phase
  buckets = []
  for frames in (256, 192, 128, 1):
    kind = "image" if frames == 1 else "video"
    for h, w in SHAPES:
      plain = frames in (256, 1) and h == w  # the two shapes that go by the plain names
      name = kind if plain else f"{kind}_{frames}x{h}x{w}"
      buckets.append(bucket(name, frames, h, w) | choice(frames, kind))
  fields = {
    "layers": layers,
    "width": width,
    "heads": heads,
    "mlp_width": mlp_width,
    "max_grid": [32, 96, 96],
    "remat": remat,
    "buckets": [shape(b) for b in buckets],
  }
  return {
    "stage": {"name": "movie_gen/t2v", "fields": fields},
    "inputs": {"buckets": buckets, "prefix": ["fps"], **CHOICE},
    "train": {
      "steps": steps,
      "batch_size": batch_size,
      "accumulate": parts * batch_size // 1536,
      "save_every": 20,  # a step takes minutes
      "eval_every": 100,
      "hang_seconds": 7200,
      "optimizer": {"learning_rate": learning_rate},
    },
    "topology": topology,
    "mesh": {"data": 1, "fsdp": -1, "context": context, "tensor": tensor},
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }


def tiny() -> dict:
  """ShapesWorld, 8 frames of 32 x 32 pixels; the recipe of t2v_256's tiny, not tuned anew."""
  buckets = [bucket("video", 8, 32, 32, fps=4.0)]
  return learner(buckets, width=192, heads=6, mlp_width=512, patch=[8, 4, 4], latent=None,
                 max_grid=[1, 8, 8], steps=4000)  # fmt: skip


def tiny_latent() -> dict:
  """ShapesWorld, 16 frames of 64 x 64 pixels as 2 x 8 x 8 latents, and images."""
  buckets = [bucket("video", 16, 64, 64), bucket("image", 1, 64, 64) | {"weight": 0.1}]
  config = learner(buckets, width=128, heads=4, mlp_width=352, patch=[1, 1, 1],
                   max_grid=[2, 8, 8], steps=1200)  # fmt: skip
  config["inputs"] |= {"autoencoder": {}, "temporal_crop": "center"}
  config["train"]["optimizer"]["learning_rate"] = 4e-3
  return config


def learner(buckets: list[dict], *, steps: int, **fields) -> dict:
  """What learns ShapesWorld on two CPU cores."""
  fields |= {
    "layers": 6,
    "position_scale": 0.5,
    "pooled_text": True,
    "text_streams": {},
    "text_encoder": {"length": 96, "words": 16, "width": 128},
    "buckets": [shape(b) for b in buckets],
    "prediction": "data",
    "noise_floor": 0.5,
    "time_loc": -0.3,
    "dtype": "float32",
    "remat": "none",
    "scan_unroll": 6,
  }
  muon = {"name": "muon", "learning_rate": 8e-3, "warmup_steps": 20, "decay": "linear", "b2": 0.99}
  return {
    "stage": {"name": "movie_gen/t2v", "fields": fields},
    "inputs": {"buckets": buckets, "text_length": 96, "cache_bytes": 2**28},
    "train": {"steps": steps, "batch_size": 64, "ema_decay": 0.99, "optimizer": muon},
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 32, "guidance_scale": 4.0, "linear_steps": 64},
  }
