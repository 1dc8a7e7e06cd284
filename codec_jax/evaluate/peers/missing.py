"""The exception that says a peer cannot be used here; `find` turns it into a reason."""


class Missing(Exception):
    """A program, package or set of weights is not here; the message says which, and where it would come from."""
