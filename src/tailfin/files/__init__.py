"""Files that are whole or not there at all, readers that say what is wrong in one line, and locks.

Public: what is imported here, `reading` and `lock`.
"""

from tailfin.files.writing import (
    append,
    cache_folder,
    cannot_write,
    make_folder,
    open_to_append,
    remove_unfinished,
    size_on_disk,
    write_atomically,
    write_json,
)

__all__ = [
    "append",
    "cache_folder",
    "cannot_write",
    "make_folder",
    "open_to_append",
    "remove_unfinished",
    "size_on_disk",
    "write_atomically",
    "write_json",
]
