"""The one error a user can cause.

Raise `UserError` with a single clear line that names the file, field or value and how to mend it.
The command line prints that line and exits with code 2; every other exception is a bug and keeps
its trace.
"""


class UserError(ValueError):
    """Bad input: the message is one line, for people, and says what to change."""


def first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, torch's on a GPU (known by name: torch need not be loaded) or on a CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)
