"""Errors with a documented exit code: one line that names the file, key or step, and what to do."""


class VidgenError(Exception):
  """Base of every error that the command line turns into one line and an exit code."""

  exit_code = 1


class ConfigError(VidgenError):
  """Bad usage or configuration: an unknown key, a wrong type, a value out of range."""

  exit_code = 2


class DataError(VidgenError):
  """Bad data: an unreadable shard, too many bad samples, a metric without enough samples."""

  exit_code = 3


class CheckpointError(VidgenError):
  """A corrupt checkpoint, or one that does not match what is asked of it."""

  exit_code = 4


class NonFiniteError(VidgenError):
  """Training met too many non-finite steps in a row."""

  exit_code = 5


class HangError(VidgenError):
  """No step was completed for too long; nothing was saved for it."""

  exit_code = 6


class Preempted(VidgenError):
  """A termination signal came; the state was saved."""

  exit_code = 143
