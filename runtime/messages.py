"""Text of error messages."""


def one_line(error: BaseException | str) -> str:
    """Shorten an error to one line of at most 120 characters; without text, give its type."""
    return " ".join(str(error).split())[:120] or type(error).__name__
