"""The size of images: one number for squares, else the pair (height, width).

size_of(48, 64)         # (48, 64)
size_of(64, 64)         # 64: each size has one form, so that sizes can be compared
height_and_width(64)    # (64, 64)
format_size((48, 64))   # "48x64"
"""

Size = int | tuple[int, int]


def size_of(height: int, width: int) -> Size:
    """The size of images of this height and width."""
    return height if height == width else (height, width)


def height_and_width(size: Size) -> tuple[int, int]:
    """Both sides of a size."""
    return (size, size) if isinstance(size, int) else size


def smaller_side(size: Size) -> int:
    """The smaller of the two sides."""
    return min(height_and_width(size))


def format_size(size: Size) -> str:
    """A size in the form that --image-size accepts."""
    return str(size) if isinstance(size, int) else "{}x{}".format(*size)
