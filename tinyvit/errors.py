"""Errors that a user can cause and correct; the command line prints them without a traceback.

Mistakes in calling the library (a wrong shape, dtype or argument) raise Python's own ValueError, TypeError and
RuntimeError. The classes here are for bad input from outside the program (files, downloads, recipes), and for a run
that fails.
"""


class TinyvitError(Exception):
    """Bad input from outside the program; the message is one sentence that says what to do about it."""


class DataError(TinyvitError):
    """A data set, an image or a download that is missing, corrupt or of the wrong kind."""


class CheckpointError(TinyvitError):
    """A checkpoint or weights file that cannot be read or written."""


class RecipeError(TinyvitError):
    """A recipe with an unknown key, a wrong type or a value out of range."""


class StudyError(TinyvitError):
    """A run, an image or an operation that cannot be studied in the requested way."""


class TrainingFailed(Exception):
    """A run that had to stop: its numbers are no longer finite, or its files cannot be written."""
