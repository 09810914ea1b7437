"""Small files that tell of very large images, files of odd kinds, and links: refused, bounded, or read, and said."""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tailfin import cli
from tailfin.data import decode as decoding
from tailfin.data.bounds import Budget
from tailfin.data.decode import decode
from tailfin.data.load import load
from tailfin.data.source import Unreadable
from tailfin.errors import UserError
from tailfin.methods.supcon import supervised_contrast

CASES = Path(__file__).parents[3] / "shared" / "cases"


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def picture(seed: int = 0) -> bytes:
    draws = torch.Generator().manual_seed(seed)
    return png(Image.fromarray(torch.randint(0, 255, (8, 8, 3), generator=draws, dtype=torch.uint8).numpy()))


MEASURED = """
import resource, sys
from tailfin.data.load import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(len(load(sys.argv[1], limit=100, workers=8).train))
except Exception as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def measured(path: Path) -> tuple[str, float]:
    """What loading said, and the memory that it took, in GB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    said, taken = done.stdout.rsplit("\n", 2)[:2]
    return said, int(taken) * 1024 / 1e9


def test_a_parquet_file_of_few_bytes_and_large_values_takes_little_memory(tmp_path: Path) -> None:
    # 24 rows of one picture with 36 MB behind it, which the file holds once.
    large = picture() + bytes(36_000_000)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 24, pa.int32()), pa.array([large], pa.binary()))
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": column}), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 60_000
    said, taken = measured(file)
    assert said == "24"
    assert taken < 0.6


def test_an_idx_gzip_of_few_bytes_and_many_images_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(file, "wb", 9) as packed:
        packed.write(struct.pack(">4BIII", 0, 0, 8, 3, 200_000, 28, 28))
        packed.write(bytes(200_000 * 28 * 28))
    said, taken = measured(file)
    assert "more than 100 times as much is not unpacked" in said
    assert taken < 0.2


def test_a_16_bit_png_of_few_bytes_takes_no_more_than_its_pixels_need(tmp_path: Path) -> None:
    line = zlib.compress(bytes((1 + 2 * 10_000) * 6_000), 9)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 10_000, 6_000, 16, 0, 0, 0, 0)),
            (b"IDAT", line),
            (b"IEND", b""),
        )
    )
    for place in range(2):
        (tmp_path / f"{place}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    said, taken = measured(tmp_path)
    assert said == "2"
    assert taken < 1.2  # of which two images in int64 alone would take .96


def scans(side: int, count: int) -> bytes:
    """A JPEG with one of its scans written over and over."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (120, 130, 140)).save(out, "JPEG", progressive=True, quality=50)
    whole = out.getvalue()
    starts = [n for n in range(len(whole) - 1) if whole[n : n + 2] == b"\xff\xda"]
    return whole[:-2] + whole[starts[1] : starts[2]] * count + b"\xff\xd9"


@pytest.mark.parametrize("as_file", [False, True])
def test_a_jpeg_of_20_000_scans_is_refused_with_its_reason(tmp_path: Path, as_file: bool) -> None:
    source: bytes | Path = scans(2000, 20_000)
    if as_file:
        (tmp_path / "x.jpg").write_bytes(source)  # type: ignore[arg-type]
        source = tmp_path / "x.jpg"
    began = time.process_time()  # others' work counts nothing
    with pytest.raises(Unreadable, match="too many scans: 200"):
        decode(source, (32, 32), 3)
    assert time.process_time() - began < 10
    assert decode(scans(64, 20), (32, 32), 3)[0].shape == (3, 32, 32)


def test_threads_share_a_budget_and_the_largest_fits_alone() -> None:
    budget, most, taken, lock = Budget(10), [0], [0], threading.Lock()

    def work(amount: int) -> None:
        with budget.taking(amount):
            with lock:
                taken[0] += min(amount, 10)
                most[0] = max(most[0], taken[0])
            time.sleep(0.002)
            with lock:
                taken[0] -= min(amount, 10)

    threads = [threading.Thread(target=work, args=(amount,)) for amount in (3, 4, 5, 20, 6, 1) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 6 <= most[0] <= 10


def test_large_images_of_16_bits_or_with_transparency_are_as_they_were_in_one_piece(monkeypatch) -> None:
    draws = torch.Generator().manual_seed(0)
    deep = Image.fromarray(torch.randint(0, 65535, (50, 40), generator=draws).numpy().astype("uint16"))
    clear = Image.fromarray(torch.randint(0, 255, (50, 40, 4), generator=draws, dtype=torch.uint8).numpy())
    keyed = Image.fromarray(torch.randint(0, 9, (50, 40), generator=draws, dtype=torch.uint8).numpy(), "L")
    keyed.info["transparency"] = 3
    for image, channels in ((deep, 1), (clear, 3), (keyed, 3)):
        whole = decode(png(image), (40, 50), channels)[0]
        monkeypatch.setattr(decoding, "_BAND", 40 * 7)
        assert (decode(png(image), (40, 50), channels)[0] == whole).all()
        monkeypatch.undo()


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside this checkout")
def test_a_tiff_of_13_bands_says_so_and_nothing_reaches_the_terminal(tmp_path: Path, capfd) -> None:
    (tmp_path / "13.tif").write_bytes((CASES / "13-bands.tif").read_bytes())
    (tmp_path / "a.png").write_bytes(picture())
    data = load(str(tmp_path), tolerate=1)
    assert [each.reason for each in data.skipped] == [
        "not readable here: More samples per pixel than can be decoded: 13"
    ]
    assert capfd.readouterr() == ("", "")


def test_what_libtiff_writes_to_the_terminal_is_the_reason(tmp_path: Path, capfd) -> None:
    for place in range(40):
        out = io.BytesIO()
        draws = torch.Generator().manual_seed(place)
        pixels = torch.randint(0, 255, (64, 64, 3), generator=draws, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(out, "TIFF", compression=("tiff_lzw", "tiff_adobe_deflate")[place % 2])
        damaged = bytearray(out.getvalue())
        damaged[200:220] = b"\xff" * 20
        (tmp_path / f"{place}.tif").write_bytes(damaged)
    (tmp_path / "a.png").write_bytes(picture())
    data = load(str(tmp_path), tolerate=1, workers=8)
    assert len(data.skipped) == 40
    for each in data.skipped:
        kind = "ZIPDecode" if int(each.name.split(".")[0]) % 2 else "not yet in table|LZW|corrupt"
        assert any(word in each.reason for word in kind.split("|")), each
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_rights_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture())
    (tmp_path / "b.png").chmod(0)
    assert [each.reason for each in load(str(tmp_path), tolerate=1).skipped] == [
        "cannot be read: Permission denied"
    ]


def test_without_rights_is_what_the_system_says(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(Unreadable, match=r"^cannot be read: Permission denied$"):
        decode(b"x", (8, 8), 3)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with images, a link to a folder and one to an image elsewhere, and links inside."""
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "photos"
    for folder in (elsewhere, root / "a", root / "b"):
        folder.mkdir(parents=True)
        for place in range(3):
            (folder / f"{place}.png").write_bytes(picture(place))
    (root / "c").symlink_to(elsewhere)
    (root / "a" / "more").symlink_to(elsewhere)
    (root / "a" / "9.png").symlink_to(elsewhere / "0.png")
    (root / "b" / "9.png").symlink_to(root / "a" / "0.png")
    return root


def test_links_that_lead_out_of_the_folder_are_not_followed_unless_asked(linked: Path) -> None:
    said: list[str] = []
    data = load(str(linked), tolerate=1, say=said.append)
    assert data.train.classes == ("a", "b")
    assert len(data.train) + len(data.test or []) == 7
    assert [(each.name, each.reason) for each in data.skipped] == [
        ("a/9.png", f"a link that leads out of {linked}; --follow-links follows it")
    ]
    assert len(said) == 1
    assert "2 links (such as" in said[0]
    assert "--follow-links" in said[0]
    every = load(str(linked), follow_links=True)
    assert every.train.classes == ("a", "b", "c")
    assert not every.skipped


def test_a_folder_of_nothing_but_a_link_says_how_to_follow_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "all").symlink_to("/usr")
    with pytest.raises(UserError, match=r"is a link that leads out of .* --follow-links"):
        load(str(tmp_path / "photos"))


@pytest.mark.parametrize("name", ["train-0.parquet", "train-images-idx3-ubyte"])
def test_files_that_are_links_out_of_the_folder_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "photos" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"is a link that leads out of .*; --follow-links follows it"):
        load(str(tmp_path / "photos"))


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "ok.png").write_bytes(picture())
    (tmp_path / "\x1b[31mred\n.png").write_bytes(b"no")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"no")
    names = [each.name for each in load(str(tmp_path), tolerate=1).skipped]
    assert names == [r"\x1b[31mred\n.png", r"\udcff.png"]


def rows(tmp_path: Path, **columns: object) -> Path:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [picture(n) for n in range(20)], **columns}), path)
    return path


@pytest.mark.parametrize(
    ("labels", "without"),
    [
        ([0, None, 1, -1] * 5, 10),
        (["cat", None, "dog", "dog"] * 5, 5),
        (pa.array([None, 1, 0, 1] * 5, pa.int8()), 5),
    ],
)
def test_rows_without_a_label_are_trained_on_and_not_judged(tmp_path: Path, labels, without: int) -> None:
    said: list[str] = []
    data = load(str(rows(tmp_path, label=labels)), say=said.append)
    assert data.test is not None
    assert len(data.train) + len(data.test) == 20
    assert int((data.test.labels < 0).sum()) == 0
    assert int((data.train.labels < 0).sum()) == without
    assert len(data.train.labelled()) == len(data.train) - without
    assert said == [
        f"{without} of {len(data.train)} training images have no label: trained on, and left out where labels judge"
    ]


def test_rows_of_a_file_without_the_column_of_labels_have_none(tmp_path: Path) -> None:
    for name, columns in (("train-0", {"label": [0, 1] * 10}), ("train-1", {})):
        rows(tmp_path, **columns).rename(tmp_path / f"{name}.parquet")
    data = load(str(tmp_path))
    assert int((data.train.labels < 0).sum()) == 20


def test_rows_of_the_test_split_without_a_label_are_passed_over(tmp_path: Path) -> None:
    rows(tmp_path, label=[0, 1] * 10).rename(tmp_path / "train-0.parquet")
    rows(tmp_path, label=[0, 1, None, -1] * 5).rename(tmp_path / "test-0.parquet")
    said: list[str] = []
    data = load(str(tmp_path), say=said.append)
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (20, 10)
    assert said == ["10 images of the test split have no label to judge with, and are passed over"]


def test_a_run_on_partly_labelled_rows_is_judged_by_the_labelled(tmp_path: Path, capsys) -> None:
    file = rows(tmp_path, label=[0, 1, None, 1] * 5)
    words = (
        f"pretrain --data {file} --out {tmp_path / 'run'} --backbone resnet10w1 --batch-size 8 --epochs 1 "
        "--device cpu --precision fp32 --memory-format contiguous --method-options hidden 4 out 4 --judge encoder"
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert not stop.value.code
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["train_images"] + result["test_images"] == 20
    assert result["labelled_images"] == result["train_images"] - 5
    assert result["knn"] is not None
    assert "5 of 17 training images have no label" in capsys.readouterr().out


def test_without_any_label_there_are_none(tmp_path: Path) -> None:
    assert load(str(rows(tmp_path, label=pa.array([None, -1] * 10, pa.int64())))).train.labels is None


def test_an_image_without_a_label_is_a_class_of_its_own_for_supcon() -> None:
    from tailfin.branch import Branch

    draws = torch.Generator().manual_seed(0)
    views = [torch.randn(6, 4, generator=draws) for _ in range(2)]
    both = Branch(tuple(views), tuple(views))
    some = supervised_contrast(both, both, torch.tensor([0, 0, -1, 1, -1, -1]), 0.5)
    own = supervised_contrast(both, both, torch.tensor([0, 0, 2, 1, 3, 4]), 0.5)
    assert torch.equal(some, own)


def struct_of(paths: list[object], kind: pa.DataType) -> pa.Array:
    nothing = pa.array([None] * len(paths), pa.binary())
    return pa.StructArray.from_arrays([nothing, pa.array(paths, kind)], ["bytes", "path"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda p: pq.write_table(pa.table([[b"x"], [b"y"]], names=["image", "image"]), p),
            "more than one column",
        ),
        (
            lambda p: pq.write_table(
                pa.table({"image": [b"x"], "label": pa.array([2**64 - 1], pa.uint64())}), p
            ),
            "labels must lie below 2\\^63",
        ),
        (lambda p: os.mkfifo(p), "neither a file nor a folder"),
        (lambda p: p.mkdir(), "no images"),
        (lambda p: p.write_bytes(b"PAR1" + bytes(100) + b"PAR1"), "not readable as Parquet"),
    ],
)
def test_odd_parquet_files_are_one_line_each(tmp_path: Path, make, words: str) -> None:
    make(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=words) as caught:
        load(str(tmp_path / "x.parquet"))
    assert "\n" not in str(caught.value)


def test_a_column_whose_name_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    file = rows(tmp_path, aname=[1] * 20)
    file.write_bytes(file.read_bytes().replace(b"aname", b"\xff\xfeame"))
    with pytest.raises(UserError, match=r"x\.parquet: not readable as Parquet"):
        load(str(file))


def test_paths_in_a_parquet_file_that_name_no_plain_file_are_skipped_rows(tmp_path: Path) -> None:
    (tmp_path / "ok.png").write_bytes(picture())
    os.mkfifo(tmp_path / "pipe")
    column = struct_of(["ok.png", "a\0b", "pipe", "none.png"], pa.string())
    pq.write_table(pa.table({"image": column}), tmp_path / "x.parquet")
    data = load(str(tmp_path / "x.parquet"), tolerate=1)
    assert [each.reason for each in data.skipped] == [
        "its path is 'a\\x00b', which names no file",
        "its path is no plain file",
        "no such file",
    ]
    column = struct_of([1, 2], pa.int64())
    pq.write_table(pa.table({"image": column}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match=r"none of 2 images can be read: .* its path is 1, which names"):
        load(str(tmp_path / "y.parquet"))


def test_a_count_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    file = rows(tmp_path)
    content = bytearray(file.read_bytes())
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    hit = 0
    for place in range(footer, len(content) - 8):
        if content[place] == 40:  # 20 rows, as a varint in zigzag
            changed = content.copy()
            changed[place] = 60
            file.write_bytes(changed)
            try:
                assert len(load(str(file)).train) == 20
            except UserError as error:
                hit += "damaged" in str(error)
    assert hit


def test_a_path_of_a_user_whom_nobody_knows_is_one_line() -> None:
    with pytest.raises(UserError, match="home directory"):
        load("~nobody-has-this-name/photos")
