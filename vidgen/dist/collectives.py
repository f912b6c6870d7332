"""What a compiled program sends between devices, read from its optimised HLO text.

XLA prints every collective once, where it stands. Here each carries how often it runs, whom it
joins, and the bytes it makes a device send when done as a ring, which no algorithm undercuts on a
ring or through a switch:

  all-gather      operand * (n - 1)           all-to-all          operand * (n - 1) / n
  reduce-scatter  operand * (n - 1) / n       collective-permute  operand
  all-reduce      2 * operand * (n - 1) / n
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  kind: of `KINDS`. name: the instruction's. op_name: the operation of the traced program it serves,
  "" if XLA did not say. operand_bytes, result_bytes: on one device, once. groups: the devices that
  talk to each other by logical id, the index into `mesh.devices.flat`; of a collective-permute
  (source, target) pairs. times: how often it runs.
  """

  kind: str
  name: str
  op_name: str
  operand_bytes: int
  groups: Groups
  times: int = 1

  @property
  def group_size(self) -> int:
    """Devices of one group; 2 of a collective-permute."""
    return max(map(len, self.groups), default=1)

  @property
  def result_bytes(self) -> int:
    """Bytes of the result on one device, once."""
    match self.kind:
      case "all-gather":
        return self.operand_bytes * self.group_size
      case "reduce-scatter":
        return self.operand_bytes // self.group_size
    return self.operand_bytes

  @property
  def bytes(self) -> int:
    """Bytes that one device sends, once; see the module."""
    n = self.group_size
    match self.kind:
      case "all-reduce":
        return 2 * self.operand_bytes * (n - 1) // n
      case "all-gather":
        return self.operand_bytes * (n - 1)
      case "collective-permute":
        return self.operand_bytes
    return self.operand_bytes * (n - 1) // n

  @property
  def total_bytes(self) -> int:
    """Bytes that one device sends, all times together."""
    return self.bytes * self.times


def collectives_of(hlo: str) -> list[Collective]:
  """The collectives of a program, from `compiled.as_text()`.

  Bodies of loops run as often as XLA knows or their condition says; of the branches of a
  conditional the one that sends most is taken. An asynchronous collective counts where it starts.
  Groups of one device are left out.

  Raises:
    ValueError: names a loop with collectives whose length is not in the text.
  """
  program = _Program(hlo)
  return [c for c in program.collectives(program.entry) if c.group_size > 1]


def summary(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
  """By kind: {"count": runs, "bytes": sent by one device}, both over all times."""
  out = {}
  for c in collectives:
    entry = out.setdefault(c.kind, {"count": 0, "bytes": 0})
    entry["count"] += c.times
    entry["bytes"] += c.total_bytes
  return out


def costliest(collectives: Iterable[Collective], *, count: int = 5) -> list[Collective]:
  """Those that send most over all times, most first."""
  return sorted(collectives, key=lambda c: -c.total_bytes)[:count]


def axes_of_group(group: Sequence[int], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
  """Names of the mesh axes along which the devices of a group differ, in the mesh's order.

  `mesh_shape` is `mesh.shape`; logical ids count through it with the last axis fastest.
  """
  places = np.unravel_index(np.asarray(group, int), tuple(mesh_shape.values()))
  return tuple(axis for axis, at in zip(mesh_shape, places, strict=True) if np.ptp(at))


def axes_of(collective: Collective, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
  """Names of the mesh axes that a collective spans."""
  found = {axis for group in collective.groups for axis in axes_of_group(group, mesh_shape)}
  return tuple(axis for axis in mesh_shape if axis in found)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  literal: str  # what stands between the parentheses
  attributes: str

  def called(self, *attributes: str) -> list[str]:
    """Names of the computations that these attributes give, single or a list in braces."""
    found = []
    for attribute in attributes:
      for names in re.findall(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes):
        found += re.findall(r"[\w.-]+", names)
    return found


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\(")
_OP_NAME = re.compile(r'\bop_name="([^"]*)"')
_CALLS = ("calls", "to_apply", "called_computations")
_COPIES = ("copy", "copy-start", "copy-done", "bitcast", "convert")
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


class _Program:
  """Computations of an HLO module by name, each a dict of instructions."""

  def __init__(self, hlo: str):
    self.computations: dict[str, dict[str, _Instruction]] = {}
    self.entry = ""
    self.roots: dict[str, str] = {}
    self.devices = _devices(hlo.partition("\n")[0])
    current = ""
    for line in hlo.splitlines():
      if start := _COMPUTATION.match(line):
        current = start[2]
        self.computations[current] = {}
        if start[1]:
          self.entry = current
      elif found := _INSTRUCTION.match(line):
        _, name, shape, opcode = found.groups()
        inside, attributes = _balanced(line, found.end())
        operands = tuple(re.findall(r"%([\w.-]+)", inside))
        instruction = _Instruction(name, shape, opcode, operands, inside, attributes)
        self.computations[current][name] = instruction
        if found[1]:
          self.roots[current] = name

  @functools.cache  # noqa: B019  (a program lives as long as the call that reads it)
  def collectives(self, computation: str) -> tuple[Collective, ...]:
    found = []
    for instruction in self.computations.get(computation, {}).values():
      if instruction.opcode.endswith(("-done", "-update")):
        continue
      kind = instruction.opcode.removesuffix("-start").removeprefix("ragged-")
      op_name = _OP_NAME.search(instruction.attributes)
      if kind in KINDS:
        found.append(self._collective(kind, computation, instruction))
      elif kind == "while":
        inner = self.collectives(instruction.called("body")[0])
        times = self._trips(computation, instruction) if inner else 0
        found += [dataclasses.replace(c, times=times * c.times) for c in inner]
      elif branches := instruction.called(*_BRANCHES):
        inner = map(self.collectives, branches)
        found += max(inner, key=lambda branch: sum(c.total_bytes for c in branch))
      for name in instruction.called(*_CALLS) if kind not in KINDS else ():
        for c in self.collectives(name):
          if name.startswith("all-reduce-scatter"):  # TPU: an all-reduce of which a part is kept
            c = dataclasses.replace(c, kind="reduce-scatter")
          if op_name and not c.op_name:
            c = dataclasses.replace(c, op_name=op_name[1])
          found.append(c)
    return tuple(found)

  def _collective(self, kind: str, computation: str, instruction: _Instruction) -> Collective:
    scope, op_name = self.computations[computation], _OP_NAME.search(instruction.attributes)
    if kind == "collective-permute":
      groups = _braces(re.search(r"source_target_pairs=(\{.*?\}\})", instruction.attributes))
    else:
      groups = _groups(instruction.attributes, self.devices)
    return Collective(
      kind=kind,
      name=instruction.name,
      op_name=op_name[1] if op_name else "",
      operand_bytes=sum(_bytes(scope[name].shape) for name in instruction.operands),
      groups=groups,
    )

  def _trips(self, computation: str, loop: _Instruction) -> int:
    """As XLA knows it, or from a condition `i < end`, where i starts, and what the body adds."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
      return int(known[1])
    condition, body = loop.called("condition")[0], loop.called("body")[0]
    test, carried = self._root(condition), (computation, loop)
    if test.opcode == "compare" and "direction=LT" in test.attributes:
      counter = self.computations[condition][test.operands[0]]
      start = self._constant(condition, counter.name, carried)
      end = self._constant(condition, test.operands[1], carried)
      index = re.search(r"\bindex=(\d+)", counter.attributes)
      step = self._step(body, int(index[1]), carried) if index else None
      if start is not None and end is not None and step:
        return max(math.ceil((end - start) / step), 0)
    raise ValueError(f"the loop {loop.name} runs collectives an unknown number of times")

  def _root(self, computation: str) -> _Instruction:
    return self.computations[computation][self.roots[computation]]

  def _step(self, body: str, index: int, carried: tuple[str, _Instruction]) -> int | None:
    """What the body adds to this part of its state."""
    root, scope = self._root(body), self.computations[body]
    if root.opcode != "tuple":
      return None
    following = scope[root.operands[index]]
    while following.opcode in _COPIES:
      following = scope[following.operands[0]]
    if following.opcode != "add":
      return None
    added = (self._constant(body, name) for name in following.operands)
    known = [value for value in added if value is not None]
    return known[0] if known else self._constant(body, following.operands[1], carried)

  def _constant(
    self, computation: str, name: str, carried: tuple[str, _Instruction] | None = None
  ) -> int | None:
    """The value of a scalar, seen through copies and, in a condition, the loop's initial state."""
    at = self.computations[computation].get(name)
    if at is None:
      return None
    if at.opcode == "constant":
      return int(at.literal) if re.fullmatch(r"-?\d+", at.literal) else None
    if at.opcode in _COPIES:
      return self._constant(computation, at.operands[0], carried)
    index = re.search(r"\bindex=(\d+)", at.attributes)
    if at.opcode == "get-tuple-element" and carried and index:
      outer, loop = carried
      state = self.computations[outer][loop.operands[0]]
      if state.opcode == "tuple":
        return self._constant(outer, state.operands[int(index[1])])
    return None


def _balanced(line: str, start: int) -> tuple[str, str]:
  """`line` from `start`, just inside a parenthesis, split where that one closes."""
  depth = 1
  for at in range(start, len(line)):
    depth += (line[at] == "(") - (line[at] == ")")
    if not depth:
      return line[start:at], line[at + 1 :]
  return line[start:], ""


def _devices(header: str) -> int:
  counts = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
  return math.prod(map(int, counts))


def _bytes(shape: str) -> int:
  """Bytes of an array or a tuple of arrays, such as "(bf16[4,256]{1,0:T(8,128)}, u32[])"."""
  bits = 0
  for kind, sides in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
    width = re.search(r"\d+", kind)  # bf16, s4, f8e4m3fn
    size = math.prod(map(int, filter(None, sides.split(","))))
    bits += size * (int(width[0]) if width else 8 * (kind == "pred"))
  return bits // 8


def _braces(found: re.Match[str] | None) -> Groups:
  """ "{{0,1},{2,3}}" as groups."""
  inner = re.findall(r"\{([\d,]+)\}", found[1]) if found else []
  return tuple(tuple(map(int, group.split(","))) for group in inner)


def _groups(attributes: str, devices: int) -> Groups:
  """The three ways to print groups: listed, as a reshaped and transposed iota, and by mesh axes."""
  if found := re.search(r"replica_groups=(\[[\d,]+\]<=\S+)", attributes):
    return _rows(_iota(found[1]))
  if found := re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", attributes
  ):
    return _mesh_groups(*found.groups())
  listed = _braces(re.search(r"replica_groups=(\{.*?\}\})", attributes))
  return listed or (tuple(range(devices)),)


def _rows(ids: np.ndarray) -> Groups:
  return tuple(tuple(map(int, row)) for row in ids)


def _integers(text: str) -> list[int]:
  return [int(number) for number in re.findall(r"\d+", text)]


def _iota(text: str) -> np.ndarray:
  """ "[8,2]<=[4,2,2]T(0,2,1)": 0, 1, ... in the second shape, transposed, in the first shape."""
  shape, source = text.split("<=")
  sides, _, order = source.partition("T")
  ids = np.arange(math.prod(_integers(sides))).reshape(_integers(sides))
  return (ids.transpose(_integers(order)) if order else ids).reshape(_integers(shape))


def _mesh_groups(axes: str, device_ids: str | None, grouped: str) -> Groups:
  """From 'a'=4,'b'=2 and 'a':(2)2,'b': all of b, and of a the part of size 2 inside one of 2."""
  sizes = {name: int(size) for name, size in re.findall(r"'?([\w.-]+)'?=(\d+)", axes)}
  ids = np.arange(math.prod(sizes.values()))
  if device_ids:
    listed = "T" not in device_ids
    ids = np.array(_integers(device_ids)) if listed else _iota(f"[{ids.size}]<={device_ids}")
  at = dict(zip(sizes, np.unravel_index(np.arange(ids.size), tuple(sizes.values())), strict=True))
  for name, before, size in re.findall(r"'?([\w.-]+)'?(?::\((\d+)\)(\d+))?", grouped):
    part = int(size or sizes[name])
    after = sizes[name] // (int(before or 1) * part)
    at[name] = at[name] - at[name] // after % part * after
  members = collections.defaultdict(list)
  for device, *place in zip(ids, *at.values(), strict=True):
    members[tuple(place)].append(int(device))
  return tuple(map(tuple, members.values()))
