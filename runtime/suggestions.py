"""Suggestions for misspelled names.

nearest("fashion-mnist", NAMES)                    # "fashionmnist"
raise ValueError(unknown("schedule", "cosin", NAMES, " or a file"))
raise ValueError(unknown_or_missing("dataset", "photos/", NAMES, " or a folder"))
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

IGNORED = str.maketrans("", "", "-_ ")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the name in `known` that is most similar to `name`, or "" if none is similar.

    Capitals, dashes, underscores and spaces are ignored.
    """
    by_plain_name = {plain(other): other for other in known}
    similar = difflib.get_close_matches(plain(name), by_plain_name, n=1)
    return by_plain_name[similar[0]] if similar else ""


def plain(name: str) -> str:
    """Return `name` in lower case, without dashes, underscores and spaces."""
    return name.lower().translate(IGNORED)


def unknown(kind: str, name: str, known: Iterable[str], or_else: str = "") -> str:
    """Return a one-line error message: the unknown name, a suggestion, and all known names.

    `or_else` is added to the list: what may be given instead of a name.
    """
    known = list(known)
    similar = nearest(name, known)
    suggestion = f", did you mean {similar}?" if similar else "."
    return f"unknown {kind} {name!r}{suggestion} Give {', '.join(known)}{or_else}"


def unknown_or_missing(kind: str, name: str, known: Iterable[str], or_else: str) -> str:
    """Like `unknown`, for what may also be the path of a file or folder.

    If `name` has a slash or a suffix, or is not similar to a known name, the message is that the
    path does not exist, or that it is neither a folder nor an .npz file.
    """
    known, suffix = list(known), Path(name).suffix
    if "/" not in name and not suffix and nearest(name, known):
        return unknown(kind, name, known, or_else)
    problem = f"no {'file' if suffix else 'folder'} {name}"
    if Path(name).expanduser().exists():
        problem = f"{name} is neither a folder nor an .npz file"
    return f"{problem}: give {', '.join(known)}{or_else}"
