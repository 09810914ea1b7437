"""Where a key stands in a TOML text: `tomllib` gives values without their lines."""

import re

_HEADER = re.compile(r"^\s*\[{1,2}\s*([\w.-]+)\s*\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*(["']?)([\w.-]+)\1\s*=""")
_LONG_STRING = re.compile(r'"""(?:\\.|[^\\])*?"""|' + r"'''.*?'''", re.DOTALL)


def find(text: str, key: str, table: str = "", index: int = 0) -> int:
    r"""The line, from 1, of `key` in the `index`-th `table` of a valid TOML text.

    A table without that key gives the table's own line, and a table that is not there the first line. An empty `key`
    asks for the table itself, an empty `table` for what stands before all tables.
    """
    current, number, seen = "", 0, {"": 0}
    own = inline = 1
    # Text inside long strings must not be taken for keys; its lines must still be counted.
    for place, line in enumerate(_LONG_STRING.sub(_blank, text).splitlines(), 1):
        if header := _HEADER.match(line):
            current = header[1]
            number = seen[current] = seen.get(current, -1) + 1
            if (current, number) == (table, index):
                if not key:
                    return place
                own = place
        elif assigned := _KEY.match(line):
            name = assigned[2]
            if (current, number, name) == (table, index, key):
                return place
            if not current and table and name in (f"{table}.{key}", table):
                inline = place
    return own if own > 1 else inline


def _blank(match: re.Match[str]) -> str:
    return '""' + "\n" * match[0].count("\n")
