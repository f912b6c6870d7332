"""Tokenizers of frozen text encoders, read from the files that come with their weights.

What a file says about truncation and padding is not followed: `text.encode_padded` does both, the
same way for every tokenizer. A special token that is spelled out in a text, such as "</s>", is text
like any other: a caption cannot end itself.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from vidgen.config import digest as digest_of
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.text import BYT5_EXTRA_IDS, ByteTokenizer, Tokenizer, until_end, utf8

MAX_BYTES = 128 << 20  # of a tokenizer's file; the largest known, of 256,000 pieces, have 17 MB
T5_EXTRA_IDS = 100  # that T5 counts after the pieces of its model
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.model")
JSON = "tokenizer.json"
BYTES = "byt5"  # the name of the one tokenizer that has no file


def load_tokenizer(path: str | Path, *, prefix: str = "") -> Tokenizer:
  """The tokenizer at `path`, which puts `prefix` before every text.

  `path` is a SentencePiece model (`*.model`), a `tokenizer.json`, a Hugging Face folder that holds
  one of them (SentencePiece first), or "byt5". UL2's mode is a prefix, such as "[S2S] ".

  Raises:
    ConfigError: nothing of the kind is there.
    CheckpointError: a file that is damaged, too large, or of a tokenizer that is not understood.
  """
  if str(path) == BYTES:
    return PrefixedBytes(prefix) if prefix else ByteTokenizer(BYT5_EXTRA_IDS)
  path = Path(path)
  if path.is_dir():
    return _of_folder(path, prefix=prefix)
  if not path.is_file():
    raise ConfigError(f"tokenizer {path}: no such file or folder")
  if path.suffix == ".json":
    return JsonTokenizer(_content(path), where=str(path), prefix=prefix)
  return SentencePieceTokenizer(_content(path), where=str(path), prefix=prefix)


def _of_folder(folder: Path, *, prefix: str) -> Tokenizer:
  config = _json(folder / "tokenizer_config.json")
  if str(config.get("tokenizer_class", "")).startswith("ByT5"):
    return load_tokenizer(BYTES, prefix=prefix)
  for name in SENTENCEPIECE:
    if (path := folder / name).is_file():
      extra = config.get("extra_ids", T5_EXTRA_IDS)
      if not isinstance(extra, int) or not 0 <= extra <= 10_000:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: extra_ids is {extra!r}")
      content = _content(path)
      return SentencePieceTokenizer(content, where=str(path), prefix=prefix, extra_ids=extra)
  if (path := folder / JSON).is_file():
    named = _json(folder / "special_tokens_map.json") | config
    pad = named.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if pad is not None and not isinstance(pad, str):
      raise CheckpointError(f"{folder}: pad_token is {pad!r}, no token")
    return JsonTokenizer(_content(path), where=str(path), prefix=prefix, pad_token=pad)
  raise ConfigError(f"tokenizer {folder}: holds none of {', '.join((*SENTENCEPIECE, JSON))}")


def _content(path: Path) -> bytes:
  try:
    size = path.stat().st_size
    if size > MAX_BYTES:
      raise CheckpointError(f"{path}: {size} bytes; no tokenizer needs more than {MAX_BYTES}")
    return path.read_bytes()
  except OSError as error:
    raise CheckpointError(f"{path}: not readable: {error.strerror or error}") from error


def _json(path: Path) -> dict[str, Any]:
  """The object in a file beside the tokenizer's; empty where there is no such file."""
  if not path.is_file():
    return {}
  try:
    tree = json.loads(_content(path))
  except (ValueError, RecursionError) as error:
    raise CheckpointError(f"{path}: damaged: {type(error).__name__}: {error}") from error
  if not isinstance(tree, dict):
    raise CheckpointError(f"{path}: not a JSON object")
  return tree


class _FromFile:
  """What tokenizers of files share: they are sent to other processes as the file's bytes."""

  vocabulary: int
  pad: int
  begin: int | None = None
  end: int

  def __init__(self, content: bytes, *, where: str, prefix: str, **options: Any):
    self._content, self._where, self._prefix = content, where, prefix
    self._options = options
    self._load(**options)
    special = [i for i in (self.begin, self.pad, self.end) if i is not None]
    if not all(0 <= i < self.vocabulary for i in special):
      raise CheckpointError(
        f"{where}: special ids {special} are not all in a vocabulary of {self.vocabulary}"
      )
    self.encode("a test")  # so that what is damaged fails here, and not in a worker

  def _load(self, **options: Any) -> None:
    raise NotImplementedError

  def __getstate__(self):
    names = ("_content", "_where", "_prefix", "_options")
    return {name: self.__dict__[name] for name in names}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._load(**self._options)

  @property
  def digest(self) -> str:
    """SHA-256 of the file, the prefix and the special ids."""
    return digest_of(
      {
        "file": hashlib.sha256(self._content).hexdigest(),
        "prefix": self._prefix,
        "special": [self.begin, self.pad, self.end],
      }
    )

  def encode(self, text: str) -> list[int]:
    """The ids of the prefix and `text`; lone surrogates become their escapes."""
    ids = self._encode(utf8(self._prefix + text).decode())
    if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
      raise CheckpointError(f"{self._where}: makes ids outside of [0, {self.vocabulary})")
    return ids

  def _encode(self, text: str) -> list[int]:
    raise NotImplementedError


class PrefixedBytes(ByteTokenizer):
  """ByT5's bytes, with a prefix before every text."""

  def __init__(self, prefix: str):
    super().__init__(BYT5_EXTRA_IDS)
    self._prefix = prefix

  @property
  def digest(self) -> str:
    """SHA-256 of the scheme and the prefix."""
    return digest_of({"bytes": super().digest, "prefix": self._prefix})

  def encode(self, text: str) -> list[int]:
    """The ids of the prefix and `text`."""
    return super().encode(self._prefix + text)


class SentencePieceTokenizer(_FromFile):
  """A SentencePiece model: T5, UL2, UMT5. It names its pad and end ids.

  `extra_ids` are counted after the pieces, as T5 does; no text has them.
  """

  def __init__(
    self, content: bytes, *, where: str = "bytes", prefix: str = "", extra_ids: int = T5_EXTRA_IDS
  ):
    super().__init__(content, where=where, prefix=prefix, extra_ids=extra_ids)

  def _load(self, *, extra_ids: int) -> None:
    import sentencepiece

    self._pieces: Any = sentencepiece.SentencePieceProcessor()
    try:
      self._pieces.LoadFromSerializedProto(self._content)
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
      raise CheckpointError(f"{self._where}: not a SentencePiece model: {error}") from error
    self._size = self._pieces.get_piece_size()
    self.vocabulary = self._size + extra_ids
    self.pad, self.end = self._pieces.pad_id(), self._pieces.eos_id()

  def _encode(self, text: str) -> list[int]:
    return self._pieces.encode(text, out_type=int)

  def decode(self, ids: list[int]) -> str:
    """The text of `ids`, without the prefix's ids being told apart."""
    kept = [i for i in until_end(ids, end=self.end) if 0 <= i < self._size]
    return self._pieces.decode([i for i in kept if not self._pieces.is_control(i)])


class JsonTokenizer(_FromFile):
  """A `tokenizer.json`: CLIP's byte pairs, and others without a begin or with one.

  Begin and end are what the file puts around an empty text. Padding is `pad_token`, or else what
  the file pads with, or else "<pad>", or else the end, as OpenAI's CLIP has it.
  """

  def __init__(
    self, content: bytes, *, where: str = "bytes", prefix: str = "", pad_token: str | None = None
  ):
    super().__init__(content, where=where, prefix=prefix, pad_token=pad_token)

  def _load(self, *, pad_token: str | None) -> None:
    import tokenizers

    try:
      self._inner: Any = tokenizers.Tokenizer.from_buffer(self._content)
      padding = self._inner.padding
      self._inner.no_truncation()
      self._inner.no_padding()
      self._inner.encode_special_tokens = True
      vocabulary = self._inner.get_vocab(with_added_tokens=True)
      around = self._inner.encode("", add_special_tokens=True).ids
    except BaseException as error:  # a panic of its library is no Exception
      raise self._damage(error) from error
    if not vocabulary or len(around) not in (1, 2):
      raise CheckpointError(
        f"{self._where}: an empty text becomes {len(around)} ids; expected an end of text, with or "
        "without a begin"
      )
    self.vocabulary = max(vocabulary.values()) + 1
    self.begin = around[0] if len(around) == 2 else None
    self.end = around[-1]
    if pad_token is not None and pad_token not in vocabulary:
      raise CheckpointError(f"{self._where}: does not know its pad token {pad_token!r}")
    if pad_token is not None:
      self.pad = vocabulary[pad_token]
    elif padding is not None:
      self.pad = padding["pad_id"]
    else:
      self.pad = vocabulary.get("<pad>", self.end)

  def _damage(self, error: BaseException) -> BaseException:
    """What to raise for an error of the library, which has no types of its own for them."""
    if isinstance(error, KeyboardInterrupt | SystemExit | CheckpointError):
      return error
    return CheckpointError(f"{self._where}: not a tokenizer: {str(error)[:200]}")

  def _encode(self, text: str) -> list[int]:
    try:
      ids = self._inner.encode(text, add_special_tokens=False).ids
    except BaseException as error:  # likewise
      raise self._damage(error) from error
    # A unigram model made from SentencePiece has "</s>" among its pieces, and finds it in a text.
    return [i for i in ids if i not in (self.begin, self.end)]

  def decode(self, ids: list[int]) -> str:
    """The text of `ids`; a byte-level vocabulary gives back lower case where it was made so."""
    kept = [i for i in until_end(ids, end=self.end) if 0 <= i < self.vocabulary]
    return self._inner.decode(kept, skip_special_tokens=True)
