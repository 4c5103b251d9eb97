"""Randomness as a function of (seed, purpose, index), so that resuming needs no saved state.

    random = generator("cpu", seed, Purpose.TRAIN, step)             # a torch.Generator
    order = np.random.default_rng((seed, Purpose.ORDER, epoch))      # or a generator of NumPy

Each purpose has its own number, so no two purposes ever share random numbers.
"""

import enum

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """The purpose of random numbers. No purpose is 0, because NumPy pads short keys with zeros."""

    TRAIN = 1  # t, noise, hidden labels, augmentation and masks of a training batch
    VALIDATE = 2  # t, noise and masks of a validation batch
    DROPOUT = 3  # dropout in a training step
    ORDER = 4  # order of the training images in an epoch, and which are mirrored
    SAMPLE = 5  # x_T and the sampler's noise, of one image
    SHAPE = 6  # one image of the built-in dataset
    LIKELIHOOD_NOISE = 7  # noise in the likelihood of one image
    LIKELIHOOD_TIME = 8  # times and dequantization offsets in the likelihood of one image
    SUBSET = 9  # the random subset of a dataset that represents it
    PURE_NOISE = 10  # images of pure noise, the reference for a large distance
    CONDITION = 11  # masks in previews, samples and evaluations of image-conditional models
    CLUSTER = 12  # the first centres of clusters


def seed_of(*key: int) -> int:
    """A 64-bit seed from (seed, purpose, index, ...)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def generator(device: str | torch.device, *key: int) -> torch.Generator:
    """A random generator that is a pure function of `key`: (seed, purpose, index, ...)."""
    return torch.Generator(device).manual_seed(seed_of(*key))
