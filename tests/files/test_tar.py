"""Tar archives: every kind of header that others write, and what a hostile or damaged one costs."""

import hashlib
import io
import os
import tarfile
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailfin.errors import UserError
from tailfin.files.tar import BLOCK, opened
from tailfin.files.tar_writing import TarWriter


def header(name="a.png", size=0, kind=b"0", raw_size=None):
    """One header block with a right checksum, whatever it tells."""
    about = tarfile.TarInfo(name)
    about.type = kind
    block = bytearray(about.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = raw_size or b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % BLOCK)


END = bytes(2 * BLOCK)


def found(path):
    with opened(path) as archive:
        return [(each.name, each.kind, archive.read(each.offset, each.size)) for each in archive.members()]


def refused(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        found(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert line.isprintable()
    return line


names = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=60),
    min_size=1,
    max_size=5,
).map("/".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=6),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_whatever_python_writes_is_read_the_same(tmp_path, members, form):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    assert found(path) == [(name, "file", content) for name, content in members]


def test_links_folders_and_pipes_are_no_files(tmp_path):
    path = tmp_path / "x.tar"
    kinds = {"hard": b"1", "soft": b"2", "folder": b"5", "pipe": b"6", "device": b"3"}
    # A link may tell the size of what it leads to, and holds nothing all the same.
    content = b"".join(header(name, 700, kind) for name, kind in kinds.items())
    path.write_bytes(content + header("a", 2) + padded(b"ab") + END)
    with opened(path) as archive:
        assert [each.kind for each in archive.members()] == [
            "link",
            "link",
            "other",
            "other",
            "other",
            "file",
        ]


def test_sparse_files_are_no_files_and_what_follows_is_found(tmp_path):
    path = tmp_path / "x.tar"
    sparse = bytearray(header("holes", 3, b"S"))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    path.write_bytes(bytes(sparse) + bytes(BLOCK) + padded(b"abc") + header("a", 1) + padded(b"x") + END)
    assert [row[:2] for row in found(path)] == [("holes", "other"), ("a", "file")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty: 0 bytes"),
        (b"\x1f\x8b" + bytes(600), "compressed by gzip"),
        (b"PK\3\4" + bytes(600), "compressed by zip"),
        (b"no tar at all" * 90, "not a tar file"),
        (
            header(raw_size=b"\x80" + (2**60).to_bytes(11, "big")) + END,
            "should have 1,152,921,504,606,846,976 bytes",
        ),
        (header(raw_size=b"\xff" * 12) + END, "negative size"),
        (header(raw_size=b"-0000000017\0") + END, "'-0000000017', no octal number"),
        (header(raw_size=b"99999999999\0") + END, "no octal number"),
        (header(size=3000) + bytes(700), "cut short or damaged: 'a.png' should have 3,000 bytes"),
        (header(size=3) + padded(b"abc") + header()[:100], "cut short at byte 1,024"),
        (header(size=3) + padded(b"abc") + b"\1" * 512, "damaged at byte 1,024"),
        (
            header(size=2**21, kind=b"x") + bytes(2**21),
            "an extended header of 2,097,152 bytes; at most 1,048,576",
        ),
        (header(size=10, kind=b"x") + padded(b"99999 a=b\n") + END, "an extended header that is none"),
        (
            header(size=10, kind=b"x") + padded(b"10 path=a\n"),
            "cut short: it ends where a member should begin",
        ),
        (
            header(size=15, kind=b"x") + padded(b"15 size=-99999\n") + header() + END,
            "a member's size is '-99999'",
        ),
        (header(size=5000, kind=b"L") + padded(b"n" * 5000) + header() + END, "a name of 5,000 characters"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, content, words):
    assert words in refused(tmp_path, content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, 4096),
    change=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=4),
)
def test_damage_anywhere_is_a_line_or_harmless(tmp_path, cut, change):
    whole = bytearray(header("a.png", 600) + padded(b"x" * 600) + header("b.png", 3) + padded(b"abc") + END)
    for place, value in change:
        whole[place % len(whole)] = value
    path = tmp_path / "x.tar"
    path.write_bytes(whole[:cut])
    with suppress(UserError):
        found(path)


def test_an_end_without_its_mark_or_with_more_behind_it_is_doubted(tmp_path):
    one = header("a", 1) + padded(b"x")
    for content, doubt in ((one, "may be cut short"), (one + END + one + END, "holds more"), (one + END, "")):
        (tmp_path / "x.tar").write_bytes(content)
        with opened(tmp_path / "x.tar") as archive:
            assert len(list(archive.members())) == 1
            assert doubt in archive.doubt
            assert bool(doubt) == bool(archive.doubt)


def test_many_tiny_records_of_an_extended_header_take_no_time(tmp_path):
    records = b"6 a=b\n" * (2**20 // 6)
    path = tmp_path / "x.tar"
    path.write_bytes(header(size=len(records), kind=b"x") + padded(records) + header("a") + END)
    start = time.monotonic()
    assert found(path) == [("a", "file", b"")]
    assert time.monotonic() - start < 10


def test_a_claimed_size_takes_no_memory(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(header(raw_size=b"\x80" + (2**40).to_bytes(11, "big")) + END)
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            found(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(UserError, match="no plain file"), opened(tmp_path / "x.tar"):
        pass


def test_a_written_archive_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.tar"
    with TarWriter(path) as tar:
        tar.add("a.png", b"abc")
        assert not path.exists()
        told = tar.finish()
    assert told == hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.stat().st_size == tar.size
    with tarfile.open(path) as plain:
        assert plain.extractfile("a.png").read() == b"abc"
    with TarWriter(tmp_path / "y.tar") as tar:
        tar.add("a.png", b"abc")  # and never finished
    assert os.listdir(tmp_path) == ["x.tar"]


def test_where_nothing_can_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        TarWriter(tmp_path / "no" / "x.tar")
