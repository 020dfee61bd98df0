"""The errors a user can cause and mend: the command line prints them without a traceback.

Mistakes in calling the library (a wrong shape, dtype or argument) raise Python's own ValueError, TypeError and
RuntimeError where they happen; these classes are for what comes from outside: files, downloads, recipes.
"""


class TinyvitError(Exception):
    """Bad input from outside the program, told in one sentence that names the way out."""


class DataError(TinyvitError):
    """A data set, an image or a download that is missing, corrupt or of the wrong kind."""


class CheckpointError(TinyvitError):
    """A checkpoint or weights file that cannot be read or written."""


class RecipeError(TinyvitError):
    """A recipe with an unknown key, a wrong type or a value out of range."""


class StudyError(TinyvitError):
    """Something that cannot be studied in this way."""
