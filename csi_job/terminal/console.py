"""Standard output, on which paths and names stand as they are."""

from rich.console import Console


def console() -> Console:
    """Return the console of standard output; what looks like Rich's markup or an emoji may be part of a path."""
    return Console(markup=False, emoji=False)
