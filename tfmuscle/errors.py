"""The only exception of our own.

A `DataError` is the user's file or folder being wrong: the command line prints it on one line and exits with 1. A wrong
argument of a caller is a plain `ValueError`; every other exception keeps its traceback, because it is our bug. Messages
follow one pattern: what was received, what is needed, what to do, naming the file and the subject.
"""


class DataError(ValueError):
    """A file or folder of the user's cannot be used; the message names file, problem and remedy."""
