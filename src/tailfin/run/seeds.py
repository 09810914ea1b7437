"""Random numbers without state: every draw follows from the run's seed, what it is for, and where in the run."""

import hashlib

import torch


def derive(seed: int, purpose: str, index: int = 0) -> int:
    """A seed for one purpose at one place of the run; resuming needs nothing but the step."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one place of the run."""
    return torch.Generator().manual_seed(derive(seed, purpose, index))
