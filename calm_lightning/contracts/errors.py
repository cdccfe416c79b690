"""The one exception that means: the input is at fault, and here is the way out."""


class CalmError(ValueError):
    """A fault in what the user gave, told in one message.

    The message names the file, line or option, what was expected, what came, and the way out.
    The command line prints it without a traceback and exits with status 2.
    """
