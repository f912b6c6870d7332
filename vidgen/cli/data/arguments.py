"""Values of arguments that several actions take."""


def positive(text: str) -> int:
  """A whole number of 1 or more."""
  value = int(text)
  if value < 1:
    raise ValueError
  return value


def part(text: str) -> tuple[int, int]:
  """(I, N) of `I/N`."""
  index, count = (int(number) for number in text.split("/"))
  if not 0 <= index < count:
    raise ValueError
  return index, count
