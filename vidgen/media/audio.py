"""WAV files: 16-bit or float samples, one or more channels."""

import dataclasses
import struct

import numpy as np
from jaxtyping import Float

from vidgen.errors import DataError

PCM, IEEE_FLOAT, EXTENSIBLE = 1, 3, 0xFFFE


@dataclasses.dataclass(frozen=True)
class Sound:
  """Samples in [-1, 1], float32 [n, c], and how many of them there are per second."""

  samples: np.ndarray
  sample_rate: int


def encode_wav(
  audio: Float[np.ndarray, "n"] | Float[np.ndarray, "n c"],
  *,
  sample_rate: int = 48_000,
  sample_format: str = "int16",
) -> bytes:
  """The bytes of a WAV file; `sample_format` is "int16" (clipped to [-1, 1]) or "float32".

  Raises:
    ValueError: another sample format.
  """
  audio = audio[:, None] if audio.ndim == 1 else audio
  if sample_format == "int16":
    code, stored = PCM, np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2")
  elif sample_format == "float32":
    code, stored = IEEE_FLOAT, audio.astype("<f4")
  else:
    raise ValueError(f"sample format {sample_format!r} is neither 'int16' nor 'float32'")
  width, channels = stored.itemsize, audio.shape[1]
  layout = struct.pack(
    "<HHIIHH", code, channels, sample_rate, sample_rate * channels * width, channels * width,
    8 * width,
  )  # fmt: skip
  chunks = [(b"fmt ", layout)]
  if code == IEEE_FLOAT:
    chunks = [(b"fmt ", layout + b"\0\0"), (b"fact", struct.pack("<I", len(audio)))]
  chunks.append((b"data", stored.tobytes()))
  body = b"WAVE" + b"".join(
    name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for name, part in chunks
  )
  return b"RIFF" + struct.pack("<I", len(body)) + body


def decode_wav(data: bytes) -> Sound:
  """Reads a 16-bit or 32-bit float WAV file.

  Raises:
    DataError: not such a file, or shorter than it says.
  """
  if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
    raise DataError("not a WAV file: no RIFF WAVE header")
  chunks = _chunks(data)
  layout = chunks.get(b"fmt ", b"")
  if len(layout) < 16 or b"data" not in chunks:
    raise DataError("WAV file without its format or its data")
  code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", layout[:16])
  if code == EXTENSIBLE and len(layout) >= 26:
    code = struct.unpack("<H", layout[24:26])[0]
  kinds = {(PCM, 16): ("<i2", 32767.0), (IEEE_FLOAT, 32): ("<f4", 1.0)}
  if (code, bits) not in kinds or not channels or not rate:
    raise DataError(f"WAV format {code} with {bits} bits: only 16-bit and 32-bit float are read")
  kind, scale = kinds[code, bits]
  frame = channels * bits // 8
  if len(chunks[b"data"]) % frame:
    raise DataError("WAV file ends within a sample")
  samples = np.frombuffer(chunks[b"data"], kind).astype(np.float32) / np.float32(scale)
  return Sound(samples.reshape(-1, channels), rate)


def _chunks(data: bytes) -> dict[bytes, bytes]:
  chunks, at = {}, 12
  while at + 8 <= len(data):
    name, size = data[at : at + 4], struct.unpack("<I", data[at + 4 : at + 8])[0]
    if at + 8 + size > len(data):
      raise DataError(f"WAV file cut short: {name!r} should have {size} bytes")
    chunks[name] = data[at + 8 : at + 8 + size]
    at += 8 + size + size % 2
  return chunks
