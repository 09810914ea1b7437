"""What a run records of the code that it was."""

from pathlib import Path

import pytest

import tailfin
from tailfin.run import versions
from tailfin.run.versions import hash_of


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_bytes(b"x = 1\n")
    (tmp_path / "inner" / "b.py").write_bytes(b"y = 2\n")
    return tmp_path


def test_every_change_of_the_code_has_another_hash(package: Path) -> None:
    seen = [hash_of(package)]
    (package / "inner" / "b.py").write_bytes(b"y = 3\n")
    seen.append(hash_of(package))
    (package / "inner" / "b.py").rename(package / "inner" / "c.py")
    seen.append(hash_of(package))
    (package / "d.py").touch()
    seen.append(hash_of(package))
    # The same bytes with the border between two files elsewhere.
    (package / "a.py").write_bytes(b"")
    (package / "d.py").write_bytes(b"x = 1\n")
    seen.append(hash_of(package))
    assert len(set(seen)) == len(seen)
    assert all(len(each) == 8 for each in seen)


def test_what_is_no_code_does_not_count(package: Path) -> None:
    before = hash_of(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_bytes(b"1")
    (package / "a.py").write_bytes(b"x = 1\r\n")
    assert hash_of(package) == before


def test_the_hash_is_of_this_package_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(versions, "hash_of", lambda package: asked.append(package) or "1a2b3c4d")
    versions.source.cache_clear()
    try:
        assert [versions.versions()["source"] for _ in range(3)] == ["1a2b3c4d"] * 3
        assert asked == [Path(tailfin.__file__).parent]
    finally:
        versions.source.cache_clear()
