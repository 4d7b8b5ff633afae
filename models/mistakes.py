"""What a person gave and what cannot be used, apart from faults of a program."""


class Mistake(ValueError):
    """A value that a person chose cannot be used; the message says which, and what would do.

    Commands say the message alone. Any other exception is a fault, whose traceback is kept.
    """


class NotTaken(Mistake):
    """Options that a network does not take.

    Args:
        network: Its name.
        options: Their names.
    """

    def __init__(self, network: str, options: list[str]) -> None:
        super().__init__(f"{network} takes no {', no '.join(options)}")
        self.network, self.options = network, options
