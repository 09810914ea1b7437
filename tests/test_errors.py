"""What a message shows of a stranger's words."""

import pytest

from tailfin.errors import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("holiday in Köln 写真.jpg", "holiday in Köln 写真.jpg"),
        ("two\nlines\t.png", r"two\nlines\t.png"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
    ],
)
def test_a_name_is_shown_on_one_line_and_commands_no_terminal(name: str, shown: str) -> None:
    assert printable(name) == shown
