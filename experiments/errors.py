"""The error that a program of this package ends with in one line."""


class UsageError(Exception):
    """Something that the user can mend; the message is one line that says how."""
