"""Memory-mapped images: they stay in their file and are read when they are needed.

    array = map_member(Path("data/photos-64-1a2b3c4d.npz"), info)     # uint8 (M,H,W,C), on the disk
    images = MappedImages(array)
    images[torch.tensor([7, 2, 9])]                                   # Tensor (3,C,H,W), in memory
    images.split(100)                                                 # parts that are not read yet

The file is mapped read-only. All processes that map it share the operating system's page cache,
which is freed when other programs need the memory.

Letters in the shape columns: M images in the file, N of them that are used, C channels, H and W
height and width.
"""

import math
import mmap
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a zip archive: the lengths of its last fields

MAX_BYTES_IN_MEMORY = 2**30  # bytes; arrays of more are mapped
CHUNK = 1000  # images that are read at once when all are needed


def map_member(file: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """Map a uint8 array of an .npz file, read-only.

    Returns None if it is compressed, encrypted, in Fortran order or not uint8. Raises ValueError,
    OSError or struct.error if the archive is damaged.
    """
    with open(file, "rb") as opened:
        opened.seek(member.header_offset)
        start = member.header_offset + LOCAL_HEADER.size
        start += sum(LOCAL_HEADER.unpack(opened.read(LOCAL_HEADER.size)))
        opened.seek(start)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:  # 1: encrypted
            return None
        version = np.lib.format.read_magic(opened)
        if version != (1, 0):
            return None
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(opened)
        if fortran_order or dtype != np.uint8:
            return None
        data = opened.tell()
        if data - start + math.prod(shape) != member.file_size:
            raise ValueError(f"{member.filename} has another size than its header says")
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    advise(mapped, "MADV_RANDOM")
    return np.frombuffer(mapped, np.uint8, math.prod(shape), data).reshape(shape)


def map_of(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that holds an array, or None if the array is in memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else None
    return mapped if isinstance(mapped, mmap.mmap) else None


def advise(mapped: mmap.mmap, advice: str, *part: int) -> None:
    """Advise the operating system how a file will be read, if it supports such advice.

    part: start and length in bytes, by default the whole file.
    """
    number = getattr(mmap, advice, None)
    if number is not None:
        mapped.madvise(number, *part)


class MappedImages:
    """Some of the images in a mapped file: uint8 (N,C,H,W).

    array: uint8 (M,H,W,C), from `map_member`. rows (N,): the indices of the images, by default all.

    Indexing reads images and returns a Tensor. `split` and `index_select` work as for a Tensor, but
    read nothing: they return `MappedImages`.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray | None = None):
        mapped = map_of(array)
        assert mapped
        self.map = mapped
        self.array = array
        self.rows = np.arange(len(array)) if rows is None else rows
        first = np.frombuffer(mapped, np.uint8)
        self.offset = array.ctypes.data - first.ctypes.data  # of the array in the file

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        _, H, W, C = self.array.shape
        return torch.Size((len(self), C, H, W))

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        rows = self.rows[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if not np.ndim(rows):
            return self.read(np.array([rows]))[0]
        return self.read(rows)

    def read(self, rows: np.ndarray) -> Tensor:
        """Read the images with these indices (n,) from the file: uint8 (n,C,H,W)."""
        self.request(rows)
        images = np.take(self.array, rows, axis=0)  # (n,H,W,C)
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def request(self, rows: np.ndarray) -> None:
        """Ask the operating system to read all these images from the disk at the same time."""
        size = math.prod(self.array.shape[1:])
        for row in rows.tolist():
            start = self.offset + row * size
            page = start - start % mmap.PAGESIZE
            advise(self.map, "MADV_WILLNEED", page, start + size - page)

    def index_select(self, dim: int, index: Tensor) -> "MappedImages":
        assert dim == 0
        return MappedImages(self.array, self.rows[index.numpy()])

    def split(self, size: int) -> tuple["MappedImages", ...]:
        return tuple(
            MappedImages(self.array, self.rows[start : start + size])
            for start in range(0, len(self), size)
        )


class JoinedImages:
    """Images whose channels come from two sets, of which at least one is mapped: uint8 (N,C+K,H,W).

    first: (N,C,H,W). second: (N,K,H,W).
    """

    def __init__(self, first: "Images", second: "Images"):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first)

    @property
    def shape(self) -> torch.Size:
        N, C, H, W = self.first.shape
        return torch.Size((N, C + self.second.shape[1], H, W))

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        return torch.cat([self.first[index], self.second[index]], dim=-3)

    def index_select(self, dim: int, index: Tensor) -> "JoinedImages":
        return JoinedImages(
            self.first.index_select(dim, index), self.second.index_select(dim, index)
        )

    def split(self, size: int) -> tuple["JoinedImages", ...]:
        return tuple(map(JoinedImages, self.first.split(size), self.second.split(size)))


Images = Tensor | MappedImages | JoinedImages


def chunks(images: Images, size: int = CHUNK) -> Iterator[Tensor]:
    """All images (N,C,H,W), `size` at a time."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
