"""The rooms of the package and what each imports, read from the code.

python docs/make_architecture.py                              docs/architecture.svg, of the working tree
python docs/make_architecture.py --commit ABC --out old.svg   of another commit
python docs/make_architecture.py --text                       a line a room instead
"""

import argparse
import ast
import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT, ACROSS, DOWN = 118, 40, 22, 34


def files(commit: str | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every module of the package, as the words of its name after "tailfin", with its code."""
    if commit is None:
        for path in sorted((ROOT / "src" / "tailfin").rglob("*.py")):
            yield path.relative_to(ROOT / "src" / "tailfin").with_suffix("").parts, path.read_text()
        return
    packed = subprocess.run(
        ["git", "archive", commit, "src/tailfin"], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        for member in tar.getmembers():
            if member.name.endswith(".py") and (file := tar.extractfile(member)) is not None:
                yield Path(member.name).with_suffix("").parts[2:], file.read().decode()


def imported(code: str) -> Iterator[tuple[str, ...]]:
    """The modules of the package that some code imports, as the words of their names; names in them may follow."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            words = node.module.split(".")
            if words[0] == "tailfin":
                yield from ((*words[1:], each.name) for each in node.names)
        elif isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "tailfin":
                    yield tuple(each.name.split(".")[1:])


def rooms(commit: str | None = None) -> dict[str, dict[str, int]]:
    """For each room, the rooms that it imports and how often; a module at the root is a room of its own."""
    found: dict[str, dict[str, int]] = {}
    for words, code in files(commit):
        room = words[0]
        if room in ("__init__", "__main__"):
            continue
        others = found.setdefault(room, {})
        for other in imported(code):
            if other and other[0] not in (room, "__version__"):
                others[other[0]] = others.get(other[0], 0) + 1
    return {room: {o: n for o, n in others.items() if o in found} for room, others in found.items()}


def floors(found: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    """The rooms from the ground up, each one floor above the highest that it imports; a circle's stay together.

    Raises:
        ValueError: There is a circle.
    """
    left, built = dict(found), list[list[str]]()
    while left:
        floor = sorted(room for room, others in left.items() if not others.keys() & left.keys())
        if not floor:
            raise ValueError(f"a circle among {', '.join(sorted(left))}")
        built.append(floor)
        left = {room: others for room, others in left.items() if room not in floor}
    return built


def reached(found: Mapping[str, Mapping[str, int]], room: str) -> set[str]:
    """What a room imports, itself or by others."""
    return set(found[room]).union(*(reached(found, other) for other in found[room]))


def drawn(found: Mapping[str, Mapping[str, int]]) -> str:
    """An SVG of the rooms, the highest floor on top, a line to each room that another imports.

    A line that follows from two others is left out: with all of them no eye could follow one.
    """
    built = floors(found)[::-1]
    widest = max(map(len, built))
    width = widest * (WIDTH + ACROSS) + ACROSS
    height = len(built) * (HEIGHT + DOWN) + DOWN
    place: dict[str, tuple[float, float]] = {}
    for row, floor in enumerate(built):
        start = (width - len(floor) * (WIDTH + ACROSS) + ACROSS) / 2
        for column, room in enumerate(floor):
            place[room] = (start + column * (WIDTH + ACROSS), DOWN / 2 + row * (HEIGHT + DOWN))
    lines, boxes = [], []
    for room, others in found.items():
        x, y = place[room]
        beyond = set[str]().union(*(reached(found, other) for other in others))
        for other in sorted(others.keys() - beyond):
            to_x, to_y = place[other]
            start_x, end_x = x + WIDTH / 2, to_x + WIDTH / 2
            bend = (y + HEIGHT + to_y) / 2
            lines.append(
                f'<path d="M{start_x:.0f},{y + HEIGHT:.0f} C{start_x:.0f},{bend:.0f} {end_x:.0f},{bend:.0f} '
                f'{end_x:.0f},{to_y:.0f}"/>'
            )
        boxes.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x + WIDTH / 2:.0f}" y="{y + HEIGHT / 2 + 5:.0f}">{escape(room)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="Rooms of tailfin and what they import">\n'
        "<style>rect{fill:#eef2f7;stroke:#54708f}text{font:15px sans-serif;text-anchor:middle;fill:#1d2733}"
        "path{fill:none;stroke:#9db0c4;stroke-width:1.2}svg{background:#fff}</style>\n"
        + "\n".join([*lines, *boxes])
        + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("architecture.svg"))
    parser.add_argument("--text", action="store_true")
    asked = parser.parse_args()
    found = rooms(asked.commit)
    if asked.text:
        for number, floor in enumerate(floors(found)):
            for room in floor:
                others = ", ".join(sorted(found[room])) or "nothing"
                print(f"floor {number}  {room:<12} imports {others}")
        return
    asked.out.write_text(drawn(found))


if __name__ == "__main__":
    main()
