"""Files that appear whole or not at all, whatever ends the process that writes them."""

import contextlib
import glob
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

LEFTOVER = ".partial"  # ends the name of a file that is not whole yet


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
  """A path to write to, which takes the name `path` once its content is on the disk."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{LEFTOVER}")
  try:
    yield temporary
    with open(temporary, "rb") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
  """Writes a file that holds all of `content`, or is as it was before."""
  with whole_file(path) as temporary:
    temporary.write_bytes(content)


def remove_leftovers(folder: Path, *, of: str = "") -> None:
  """Removes what a killed writer has left in a folder; `of` one file, where others still write."""
  name = f"{glob.escape(of)}." if of else ""
  for path in folder.glob(f".{name}*{LEFTOVER}"):
    path.unlink(missing_ok=True)
