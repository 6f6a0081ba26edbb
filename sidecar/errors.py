"""One exception tree, split by whose fault it is.

`UsageError` is the caller's fault and is shown as one line with exit status 2. `EnvironmentDenied` is a right,
a kernel feature or a resource that this place does not give; the caller falls back or reports it.
`ProtocolError` is ours: one Rankguard process told another something it cannot read.
"""


class RankguardError(Exception):
    """Every error that Rankguard raises on purpose."""


class UsageError(RankguardError):
    """Bad input by a person: one clear line, which says what was wrong and what is allowed."""


class SettingError(UsageError):
    """A setting that cannot be used. `name` is the setting, `value` what was given, `allowed` what would be right."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}: {value!r} cannot be used: {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class EnvironmentDenied(RankguardError):
    """Something that this machine, kernel or container does not let us do."""


class Unsupported(EnvironmentDenied):
    """The kernel (or a seccomp filter, or gVisor) has no such call: use the older way."""


class OutOfDescriptors(EnvironmentDenied):
    """EMFILE or ENFILE. Not the same as unsupported: the call exists and would work with a higher limit."""


class ProcessGone(RankguardError):
    """The process that was asked about is gone, or its pid now belongs to another process."""


class ProtocolError(RankguardError):
    """A message between two Rankguard processes that cannot be understood."""


class PeerGone(RankguardError):
    """The other end of a channel closed it: that process has ended."""
