"""The one exception that means "the user can fix this": the command line shows its message and exits with code 2."""


class UsageError(ValueError):
    """A value that the user gave cannot work; the message names the value and the remedy."""


class NotFinite(UsageError):
    """A step would make weights that are not finite numbers; none was changed."""
