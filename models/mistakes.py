"""What a person gave and what cannot be used, apart from faults of a program."""


class Mistake(ValueError):
    """A value that a person chose cannot be used; the message says which, and what would do.

    Commands say the message alone. Any other exception is a fault, whose traceback is kept.
    """
