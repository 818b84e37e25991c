"""The kinds of inputs: every range of each holds the same images."""

import io

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from transformers_detrpose.annotation.inputs import open_pictures

COLORS = [(number, 10 * number, 255 - number) for number in range(11)]


def encoded(color):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def dataset():
    rows = {
        "image": [{"bytes": encoded(color), "path": None} for color in COLORS],
        "name": [f"n{c[0]}" for c in COLORS],
    }
    return Dataset.from_dict(rows).cast_column("image", ImageFeature())


@pytest.fixture
def make_input(dataset, tmp_path):
    def make(kind):
        path = tmp_path / kind
        if kind == "folder":
            for number, color in enumerate(COLORS):
                file = path / ("a" if number < 5 else "b") / f"{number:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(color))
            (path / "notes.txt").write_text("no image")
            (path / ".hidden.png").write_bytes(encoded((0, 0, 0)))
        elif kind == "disk":
            dataset.save_to_disk(path)
        else:
            path.mkdir()
            dataset.select(range(7)).to_parquet(path / "1.parquet", batch_size=3)  # row groups of 3, 3 and 1
            dataset.select(range(7, 11)).to_parquet(path / "2.parquet", batch_size=2)
        return path

    return make


def color_of(picture):
    source = io.BytesIO(picture.source) if isinstance(picture.source, bytes) else picture.source
    return Image.open(source).getpixel((0, 0))


@pytest.mark.parametrize("kind", ["folder", "disk", "parquet"])
def test_every_range(make_input, kind):
    pictures = open_pictures(str(make_input(kind)))
    assert len(pictures) == len(COLORS)
    for start in range(len(COLORS)):
        for stop in range(start + 1, len(COLORS) + 1):
            found = list(pictures.read(start, stop))
            assert [color_of(picture) for picture in found] == COLORS[start:stop]
    ids = [picture.id for picture in pictures.read(0, len(COLORS))]
    expected = [f"{'a' if n < 5 else 'b'}/{n:02d}.png" if kind == "folder" else str(n) for n in range(len(COLORS))]
    assert ids == expected


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_names_from_a_column(make_input, kind):
    pictures = open_pictures(str(make_input(kind)), id_column="name")
    assert [picture.id for picture in pictures.read(4, 9)] == ["n4", "n5", "n6", "n7", "n8"]


def test_the_fingerprint_changes_with_the_names(make_input):
    folder = make_input("folder")
    before = open_pictures(str(folder)).fingerprint()
    assert open_pictures(str(folder)).fingerprint() == before
    (folder / "a" / "00.png").rename(folder / "a" / "new.png")
    assert open_pictures(str(folder)).fingerprint() != before


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("parquet", {"image_column": "photo"}, "has no column photo, only image, name"),
        ("disk", {"id_column": "id"}, "the dataset has no column id, only image, name"),
    ],
)
def test_missing_columns(make_input, kind, options, message):
    with pytest.raises(ValueError, match=message):
        open_pictures(str(make_input(kind)), **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("owner/nowhere", "cannot load the split train of the dataset owner/nowhere"),
        ("empty", "neither a folder with images nor a Parquet file"),
    ],
)
def test_no_images(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_pictures(name)
