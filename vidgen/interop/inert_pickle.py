"""PyTorch's pickles read as data: opcodes of a short list, names of a shorter one, nothing called.

A pickle is a program for a stack machine, and an ordinary unpickler lets it import and call what it
names. Here the opcodes come from the standard library's disassembler, and whatever a pickle "calls"
is one of a few functions below that put plain records together. Any other name is an error that
says it.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vidgen.interop.tensors import MAX_BYTES, MAX_DIMENSIONS, shown

MAX_OPCODES = 1_000_000  # some 50 an array
SCRIPTED = "__torch__"  # begins the names of classes in a TorchScript archive


@dataclasses.dataclass(frozen=True)
class Storage:
  """Flat memory that tensors are views of: its key in the file, and how many elements it has."""

  key: str
  dtype: np.dtype
  size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage; `offset` and `strides` count elements."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass
class Record:
  """An object of a TorchScript module: its attributes, nothing of its code."""

  attributes: dict[Any, Any]


@dataclasses.dataclass(frozen=True)
class _Name:
  """What a pickle names in order to call it."""

  name: str


_DTYPES: Mapping[str, np.dtype] = {
  "bool": np.dtype(np.bool_),
  "uint8": np.dtype(np.uint8),
  "int8": np.dtype(np.int8),
  "uint16": np.dtype(np.uint16),
  "int16": np.dtype(np.int16),
  "uint32": np.dtype(np.uint32),
  "int32": np.dtype(np.int32),
  "uint64": np.dtype(np.uint64),
  "int64": np.dtype(np.int64),
  "float16": np.dtype(np.float16),
  "bfloat16": jnp.dtype(jnp.bfloat16),
  "float32": np.dtype(np.float32),
  "float64": np.dtype(np.float64),
  "complex64": np.dtype(np.complex64),
  "float8_e4m3fn": jnp.dtype(jnp.float8_e4m3fn),
  "float8_e5m2": jnp.dtype(jnp.float8_e5m2),
}

_STORAGES: Mapping[str, np.dtype] = {
  "torch BoolStorage": _DTYPES["bool"],
  "torch ByteStorage": _DTYPES["uint8"],
  "torch CharStorage": _DTYPES["int8"],
  "torch ShortStorage": _DTYPES["int16"],
  "torch IntStorage": _DTYPES["int32"],
  "torch LongStorage": _DTYPES["int64"],
  "torch HalfStorage": _DTYPES["float16"],
  "torch BFloat16Storage": _DTYPES["bfloat16"],
  "torch FloatStorage": _DTYPES["float32"],
  "torch DoubleStorage": _DTYPES["float64"],
  "torch ComplexFloatStorage": _DTYPES["complex64"],
  "torch.storage UntypedStorage": _DTYPES["uint8"],
  "torch UntypedStorage": _DTYPES["uint8"],
}


def read_pickle(file: io.BytesIO) -> Any:
  """The value of the pickle that begins where `file` stands; `file` stands behind it then.

  Containers, numbers and text are Python's; tensors, storages and scripted objects are the records
  above. `file` must be bounded: a pickle takes memory in proportion to its length.

  Raises:
    ValueError: it is damaged, or holds or calls anything that weights have no need of.
  """
  machine = _Machine()
  try:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
      if count >= MAX_OPCODES:
        raise ValueError(f"more than {MAX_OPCODES:,} opcodes")
      if opcode.name == "STOP":
        return machine.result()
      step = _STEPS.get(opcode.name)
      if step is None:
        raise ValueError(f"opcode {opcode.name} is not for weights; nothing was run")
      step(machine, argument)
  except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise ValueError(f"a damaged pickle: {type(error).__name__}: {error}") from error
  raise ValueError("a pickle without an end")


class _Machine:
  """The stack, the marks and the memo of one pickle."""

  def __init__(self):
    self.stack: list[Any] = []
    self.marked: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.copied = 0

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def pop(self) -> Any:
    return self.stack.pop()

  def mark(self) -> None:
    self.marked.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list[Any]:
    items, self.stack = self.stack, self.marked.pop()
    return items

  def pop_many(self, count: int) -> tuple[Any, ...]:
    items = tuple(self.stack[-count:])
    if len(items) != count:
      raise IndexError("the stack is empty")
    del self.stack[-count:]
    return items

  def result(self) -> Any:
    if len(self.stack) != 1 or self.marked:
      raise ValueError("a pickle that leaves its stack in disorder")
    return self.stack[0]

  def put(self, key: int) -> None:
    self.memo[key] = self.stack[-1]

  def append(self, items: Any) -> None:
    _of(list, self.stack[-1]).extend(items)

  def set_items(self, pairs: list[Any]) -> None:
    table = _of(dict, self.stack[-1])
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
      table[_key(key)] = value

  def new_dict(self) -> None:
    items = self.pop_mark()
    self.push({})
    self.set_items(items)

  def named(self, name: Any) -> None:
    """A name is looked up here and nowhere else."""
    known = name in _CALLS or name in _STORAGES or _torch_dtype(name) is not None
    if not known and not _scripted(name):
      raise ValueError(
        f"it refers to {shown(name)}, which weights have no need of; nothing was run"
      )
    dtype = _torch_dtype(name)
    self.push(_Name(name) if dtype is None else dtype)

  def call(self) -> None:
    function, arguments = self.pop_many(2)
    made = _CALLS.get(function.name) if isinstance(function, _Name) else None
    if made is None or not isinstance(arguments, tuple):
      raise ValueError(f"it calls {_called(function)}; nothing was run")
    # What is made may be as large as a list that is named again and again.
    self.copied += sum(len(a) for a in arguments if isinstance(a, list | tuple))
    if self.copied > MAX_OPCODES:
      raise ValueError("it calls for more than it holds")
    self.push(made(*arguments))

  def new_object(self) -> None:
    kind, arguments = self.pop_many(2)
    if not isinstance(kind, _Name) or not _scripted(kind.name) or arguments != ():
      raise ValueError(f"it makes an object of {_called(kind)}; nothing was run")
    self.push(Record({}))

  def build(self) -> None:
    state = self.pop()
    target = self.stack[-1]
    if isinstance(target, Record):
      target.attributes = _of(dict, state)
    elif not isinstance(target, dict | Tensor):  # theirs have notes that weights do without
      raise ValueError(f"it sets the state of a {type(target).__name__}")

  def persistent(self) -> None:
    """A storage: ("storage", type, key, device, size), and in old files what part it is of what."""
    kind, named, key, _, size, *view = _of(tuple, self.pop())
    if kind != "storage" or not isinstance(named, _Name) or named.name not in _STORAGES:
      raise ValueError(f"a persistent object of kind {shown(kind)}, not a storage")
    if view not in ([], [None]):
      raise ValueError(f"storage {shown(key)} is a part of another, as no version since 0.4 writes")
    self.push(Storage(_of(str, key), _STORAGES[named.name], _size(size)))


def _called(value: Any) -> str:
  return shown(value.name if isinstance(value, _Name) else value)


def _of(kind: type, value: Any) -> Any:
  if not isinstance(value, kind):
    raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
  return value


def _key(value: Any) -> Any:
  if not isinstance(value, str | int | float | bool | None):
    raise ValueError(f"a {type(value).__name__} as a key")
  return value


def _size(value: Any) -> int:
  if type(value) is not int or not 0 <= value <= MAX_BYTES:
    raise ValueError(f"{shown(value)} is no size")
  return value


def _sizes(value: Any) -> tuple[int, ...]:
  if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
    raise ValueError(f"{shown(value)} is no shape")
  return tuple(_size(size) for size in value)


def _torch_dtype(name: Any) -> np.dtype | None:
  return _DTYPES.get(name.removeprefix("torch ")) if str(name).startswith("torch ") else None


def _scripted(name: Any) -> bool:
  module = str(name).split(" ")[0]
  return module == SCRIPTED or module.startswith(SCRIPTED + ".")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
  return {_key(key): value for key, value in pairs}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
  return _view(storage, offset, shape, strides, _of(Storage, storage).dtype)


def _tensor_of_dtype(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  gradient: Any,
  hooks: Any,
  dtype: Any,
  *_: Any,
) -> Tensor:
  return _view(storage, offset, shape, strides, _of(np.dtype, dtype))


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype) -> Tensor:
  return Tensor(_of(Storage, storage), dtype, _size(offset), _sizes(shape), _sizes(strides))


def _first(value: Any, *_: Any) -> Any:
  return value


_CALLS: Mapping[str, Callable[..., Any]] = {
  "collections OrderedDict": _ordered_dict,
  "torch Size": _sizes,
  "torch._utils _rebuild_tensor": _tensor,
  "torch._utils _rebuild_tensor_v2": _tensor,
  "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
  "torch._utils _rebuild_parameter": _first,
  "torch.jit._pickle build_boollist": _first,
  "torch.jit._pickle build_doublelist": _first,
  "torch.jit._pickle build_intlist": _first,
  "torch.jit._pickle build_tensorlist": _first,
  "torch.jit._pickle restore_type_tag": _first,
}


def _constant(machine: _Machine, argument: Any) -> None:
  machine.push(argument)


_STEPS: Mapping[str, Callable[[_Machine, Any], Any]] = {
  **{
    name: _constant
    for name in (
      "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE BINUNICODE8"
      " SHORT_BINUNICODE STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES"
    ).split()
  },
  **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, key: m.put(key)),
  **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, key: m.push(m.memo[key])),
  "MEMOIZE": lambda m, _: m.put(len(m.memo)),
  "NONE": lambda m, _: m.push(None),
  "NEWTRUE": lambda m, _: m.push(True),
  "NEWFALSE": lambda m, _: m.push(False),
  "MARK": lambda m, _: m.mark(),
  "POP": lambda m, _: m.pop(),
  "POP_MARK": lambda m, _: m.pop_mark(),
  "DUP": lambda m, _: m.push(m.stack[-1]),
  "EMPTY_TUPLE": lambda m, _: m.push(()),
  "EMPTY_LIST": lambda m, _: m.push([]),
  "EMPTY_DICT": lambda m, _: m.push({}),
  "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
  "TUPLE1": lambda m, _: m.push(m.pop_many(1)),
  "TUPLE2": lambda m, _: m.push(m.pop_many(2)),
  "TUPLE3": lambda m, _: m.push(m.pop_many(3)),
  "LIST": lambda m, _: m.push(m.pop_mark()),
  "DICT": lambda m, _: m.new_dict(),
  "APPEND": lambda m, _: m.append([m.pop()]),
  "APPENDS": lambda m, _: m.append(m.pop_mark()),
  "SETITEM": lambda m, _: m.set_items(list(m.pop_many(2))),
  "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
  "GLOBAL": lambda m, name: m.named(name),
  "STACK_GLOBAL": lambda m, _: m.named(" ".join(_of(str, part) for part in m.pop_many(2))),
  "REDUCE": lambda m, _: m.call(),
  "NEWOBJ": lambda m, _: m.new_object(),
  "BUILD": lambda m, _: m.build(),
  "BINPERSID": lambda m, _: m.persistent(),
}
