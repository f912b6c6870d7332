"""Files of weights made byte by byte, sound ones and others."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}


def safetensors_bytes(header, data=b"", *, length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zip_bytes(members, *, compress=()):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    for name, content in members.items():
      kind = zipfile.ZIP_DEFLATED if name in compress else zipfile.ZIP_STORED
      archive.writestr(zipfile.ZipInfo(name), content, compress_type=kind)
  return out.getvalue()


def torch_zip(pickled, storages, *, byteorder=b"little", **options):
  """An archive as torch.save writes it, around any pickle; `storages` by key."""
  members = {"archive/data.pkl": pickled, "archive/byteorder": byteorder}
  members |= {f"archive/data/{key}": content for key, content in storages.items()}
  return zip_bytes(members, **options)


def torch_legacy(pickled, storages, *, little=True, keys=None, system=None):
  """The older format; `storages` are pairs (number of elements, bytes) by key."""
  system = SYSTEM | {"little_endian": little} if system is None else system
  keys = list(storages) if keys is None else keys
  parts = [pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, system)]
  parts += [pickled, pickle.dumps(keys, 2)]
  order = "little" if little else "big"
  parts += [count.to_bytes(8, order) + content for count, content in storages.values()]
  return b"".join(parts)


def text(value):
  raw = value.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
  return b"\x8a\x08" + struct.pack("<q", value)  # LONG1 of eight bytes


def numbers(values):
  return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", *, kind="torch\nFloatStorage", size=6, more=b""):
  return b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu") + (
    number(size) + more + b"tQ")  # fmt: skip


def tensor(*, held=None, offset=0, shape=(2, 3), strides=(3, 1)):
  held = storage() if held is None else held
  return b"".join(
    [b"ctorch._utils\n_rebuild_tensor_v2\n(", held, number(offset), numbers(shape),
     numbers(strides), b"\x89ccollections\nOrderedDict\n)RtR"]
  )  # fmt: skip


def state(items):
  """A pickle of a dict, whose values are pickled already."""
  return b"\x80\x02}(" + b"".join(text(name) + value for name, value in items.items()) + b"u."


SIX = np.arange(6, dtype="<f4").tobytes()


def sound_files():
  """A small valid file of each format by its name; each holds "a" = [[0, 1, 2], [3, 4, 5]]."""
  pickled = state({"a": tensor()})
  return {
    "sound.safetensors": safetensors_bytes({"a": entry("F32", [2, 3], 0, 24)}, SIX),
    "sound_zip.pt": torch_zip(pickled, {"0": SIX}),
    "sound_legacy.pt": torch_legacy(pickled.replace(b"tQ", b"NtQ"), {"0": (6, SIX)}),
  }
