"""Parquet in the Hugging Face layout: columns, class names, splits, limits, damage."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tailfin.data import channel_statistics, load
from tailfin.data.sources.parquet import list_parquet
from tailfin.errors import UserError

CIFAR = Path(__file__).resolve().parents[2].parent / "shared" / "datasets" / "cifar10"


def pixel(folder, value):
    return folder.encode(Image.new("RGB", (4, 2), (value, 2 * value, 0)))


def write(path, values, folder, labels=None, names=None, column="image", rows=3):
    """A file whose i-th image shows `values[i]`, in row groups of `rows`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {column: [{"bytes": pixel(folder, v), "path": None} for v in values]}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


def shown(images):
    """The value that each image shows, its geometry checked."""
    assert tuple(images.images.shape[1:]) == (3, 2, 4)
    assert torch.equal(images.images[:, 1].long(), 2 * images.images[:, 0].long())
    return images.images[:, 0, 0, 0].tolist()


def test_splits_by_file_name_and_class_names_from_the_schema(folder):
    root = folder.root
    write(root / "data" / "train-00000-of-00002.parquet", [1, 2, 3, 4], folder, [0, 1, 1, 0], ["cat", "dog"])
    write(root / "data" / "train-00001-of-00002.parquet", [5, 6], folder, [1, 0], ["cat", "dog"])
    write(root / "data" / "validation-00000-of-00001.parquet", [9], folder, [1], ["cat", "dog"])
    write(root / "data" / "test-00000-of-00001.parquet", [7, 8], folder, [1, 0], ["cat", "dog"])
    data = load(str(root))
    assert (shown(data.train), data.train.labels.tolist()) == ([1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 0])
    assert (shown(data.test), data.test.labels.tolist()) == ([7, 8], [1, 0])
    assert data.train.classes == data.test.classes == ("cat", "dog")
    assert list_parquet(root).images.name(5) == "data/train-00001-of-00002.parquet[1]"


def test_splits_by_folder_name(folder):
    write(folder.root / "default" / "train" / "0000.parquet", [1, 2], folder, [0, 1])
    write(folder.root / "default" / "test" / "0000.parquet", [3], folder, [1])
    data = load(str(folder.root))
    assert (shown(data.train), shown(data.test)) == ([1, 2], [3])


def test_an_unlabelled_test_split_gives_way_to_validation(folder):
    write(folder.root / "train-0.parquet", [1, 2], folder, [0, 1])
    write(folder.root / "test-0.parquet", [3, 4], folder, [-1, -1])
    write(folder.root / "validation-0.parquet", [5], folder, [0])
    assert shown(load(str(folder.root)).test) == [5]


@pytest.mark.parametrize("kind", ["bytes", "large", "named img"])
def test_the_image_column_is_found_by_its_type(folder, kind):
    values = [pixel(folder, v) for v in (1, 2)]
    if kind == "named img":
        columns = {"mask": [b"x", b"y"], "img": values}
    else:
        columns = {
            "id": [1, 2],
            "content": pa.array(values, pa.large_binary() if kind == "large" else pa.binary()),
        }
    file = folder.root / "x.parquet"
    pq.write_table(pa.table(columns), file)
    data = load(str(file))
    assert (shown(data.train), data.train.labels) == ([1, 2], None)


@pytest.mark.parametrize("dictionary", [False, True])
def test_string_labels_become_sorted_classes(folder, dictionary):
    labels = pa.array(["pear", "fig", "pear", "fig"])
    file = write(
        folder.root / "x.parquet", [1, 2, 3, 4], folder, labels.dictionary_encode() if dictionary else labels
    )
    listing = list_parquet(file)
    assert (listing.classes, listing.labels.tolist()) == (("fig", "pear"), [1, 0, 1, 0])


def test_integer_labels_without_names_are_counted_from_zero(folder):
    listing = list_parquet(write(folder.root / "x.parquet", [1, 2, 3], folder, [7, 300, 7]))
    assert (listing.classes, listing.labels.tolist()) == (("7", "300"), [0, 1, 0])


def test_missing_labels_throughout_mean_none(folder):
    file = write(folder.root / "x.parquet", [1, 2], folder, pa.array([None, None], pa.int64()))
    assert load(str(file)).train.labels is None


def test_bytes_may_lie_in_a_file_beside_but_not_outside(folder):
    folder.put("pictures/1.png", pixel(folder, 1))
    folder.put("../secret.png", pixel(folder, 2))
    rows = [
        {"bytes": None, "path": "pictures/1.png"},
        {"bytes": None, "path": "../secret.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": pixel(folder, 3), "path": "gone.png"},
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), folder.root / "x.parquet")
    data = load(str(folder.root / "x.parquet"), tolerate=1.0)
    assert shown(data.train) == [1, 3]
    assert [each.name for each in data.skipped] == [f"x.parquet[{i}]" for i in (1, 2, 3, 4)]
    assert "outside" in data.skipped[0].reason
    assert data.skipped[1].reason == "no such file"
    assert data.skipped[2].reason == data.skipped[3].reason == "the row holds neither bytes nor a path"


def test_a_limit_reads_only_the_rows_it_needs(folder, monkeypatch):
    import tailfin.data.store as store

    labels = [i % 2 for i in range(60)]
    write(folder.root / "train-0.parquet", list(range(60)), folder, labels, rows=7)
    write(folder.root / "test-0.parquet", [100, 101], folder, [0, 1])
    decoded = []
    real = store.decode
    monkeypatch.setattr(store, "decode", lambda *args: decoded.append(args) or real(*args))
    data = load(str(folder.root), limit=10, seed=1)
    assert len(decoded) == 12
    assert shown(data.test) == [100, 101]
    assert data.train.labels.bincount().tolist() == [5, 5]
    assert [v % 2 for v in shown(data.train)] == data.train.labels.tolist()
    assert shown(load(str(folder.root), limit=10, seed=1).train) == shown(data.train)
    assert shown(load(str(folder.root), limit=10, seed=2).train) != shown(data.train)


def test_a_damaged_row_is_skipped_by_name(folder):
    file = folder.root / "x.parquet"
    images = [pixel(folder, v) for v in range(5)]
    images[3] = images[3][:40]
    pq.write_table(pa.table({"image": images}), file)
    data = load(str(file), tolerate=0.2)
    assert shown(data.train) == [0, 1, 2, 4]
    assert [each.name for each in data.skipped] == ["x.parquet[3]"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, f: p.write_bytes(b"PAR1 nonsense"), "not readable as Parquet"),
        (lambda p, f: p.write_bytes(write(p, [1] * 50, f).read_bytes()[:-9]), "not readable as Parquet"),
        (
            lambda p, f: pq.write_table(pa.table({"x": [1], "text": ["a"]}), p),
            r"columns: x \(int64\), text \(string\)",
        ),
        (
            lambda p, f: write(p, [1, 2], f, [0, 5], ["cat", "dog"]),
            r"'label' holds 5, but there are 2 class names",
        ),
    ],
)
def test_what_is_wrong_is_said(folder, make, message):
    make(folder.root / "train-0.parquet", folder)
    with pytest.raises(UserError, match=message):
        load(str(folder.root))


def test_damaged_pages_are_an_error_not_a_crash(folder):
    file = write(folder.root / "x.parquet", list(range(40)), folder)
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load(str(file))


def test_only_a_test_split_is_said(folder):
    write(folder.root / "test-0.parquet", [1], folder)
    with pytest.raises(UserError, match="no training split; found only: test"):
        load(str(folder.root))


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs the CIFAR-10 Parquet files in shared/datasets")
def test_cifar10_has_the_published_statistics():
    data = load(str(CIFAR), limit=5000)
    assert data.train.classes[:3] == ("airplane", "automobile", "bird")
    assert tuple(data.test.images.shape) == (10_000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [500] * 10
    # The published mean and deviation are those of all 50,000 images; a twentieth of a standard deviation is ample.
    mean, std = channel_statistics(data.train.images)
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=0.01)
