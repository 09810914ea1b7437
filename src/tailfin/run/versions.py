"""What a run was computed with: the versions of the libraries, and which code of this one."""

import hashlib
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import tailfin


def versions() -> dict[str, str]:
    """What the run was computed with."""
    found = {"python": platform.python_version(), "tailfin": tailfin.__version__, "source": source()}
    return found | {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}


@lru_cache
def source() -> str:
    """Eight characters of this package's code, for its version stays the same between releases.

    Read once a process, and by a run before its first step: files edited while it trains are not what it ran.
    """
    return hash_of(Path(tailfin.__file__).parent)


def hash_of(package: Path) -> str:
    """Eight characters that differ where a Python file below `package` has another content or another place."""
    digest = hashlib.blake2b(digest_size=4)
    for inner in sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py")):
        # A checkout may write line ends its own way.
        content = (package / inner).read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{inner}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
