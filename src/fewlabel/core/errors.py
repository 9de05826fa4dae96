"""Errors that a user can act on.

Each message is one sentence that names the thing, what was found, what is expected and what to do. The command line
prints it and exits with status 2; a traceback is for faults of our own.
"""


class FewlabelError(Exception):
    """Base of every error caused by input, settings or files rather than by a fault in fewlabel."""


class DataError(FewlabelError):
    """An image, mask, list or label cannot be used as it is."""


class RecipeError(FewlabelError):
    """A recipe or an option holds a key or value that has no meaning."""


class RunError(FewlabelError):
    """A stage of a run cannot start or go on."""


class ModelError(FewlabelError):
    """A checkpoint or network is missing, damaged, or of another kind than asked for."""


class ExportError(FewlabelError):
    """An exported model does not reproduce the network it came from."""


def first_line(error: object) -> str:
    """What a library said, for a sentence of ours: its first sentence without the stop, or the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(". :") if lines else type(error).__name__
