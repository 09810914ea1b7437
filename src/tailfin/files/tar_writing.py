"""A tar archive that appears whole, by rename, with the checksum of what was written."""

import hashlib
import os
import secrets
import tarfile
from pathlib import Path
from types import TracebackType

from tailfin.files.tar import BLOCK
from tailfin.files.writing import cannot_write


class TarWriter:
    """Writes members to a hidden file beside `path`, which takes its name in `finish`; else nothing is left of it.

    Members have no times and no owners, so that the same content is the same file.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._digest = hashlib.sha256()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._temporary, flags, 0o666), "wb", buffering=2**20)
        except OSError as error:
            raise cannot_write(path, error) from None

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:  # the disk is full: what `add` or `finish` met is the error to tell
            pass
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, name: str, content: bytes) -> None:
        """Add a file.

        Raises:
            UserError: The disk is full, or is gone.
        """
        about = tarfile.TarInfo(name)
        about.size = len(content)
        self._write(about.tobuf(tarfile.USTAR_FORMAT))
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))

    def finish(self) -> str:
        """Give the archive its name, in place of what had it.

        Returns:
            The SHA-256 of the file.

        Raises:
            UserError: As `add`.
        """
        self._write(bytes(2 * BLOCK))
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        return self._digest.hexdigest()

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._digest.update(content)
        self.size += len(content)
