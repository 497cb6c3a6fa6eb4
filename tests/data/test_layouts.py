from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edge_ad.data.layouts import LAYOUTS, Dataset, Sample, read_dataset, read_masks
from edge_ad.errors import (
    DataNotFoundError,
    EmptyDataError,
    LayoutError,
    MaskSizeError,
    MaskWithoutImageError,
    MissingMaskError,
    NoNormalImagesError,
)
from edge_ad.imaging import image_size, write_png

MVTEC = [
    *(f"train/good/{stem}.png" for stem in ("000", "001", "010")),
    *("test/good/000.png", "test/scratch/000.png", "test/scratch/001.png", "test/pit/000.png"),
    *(f"ground_truth/{name}_mask.png" for name in ("scratch/000", "scratch/001", "pit/000")),
]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def listed(root: Path, samples: tuple[Sample, ...]) -> list[tuple[str, int, str, list[str]]]:
    return [
        (
            sample.path.relative_to(root).as_posix(),
            sample.label,
            sample.defect,
            [mask.relative_to(root).as_posix() for mask in sample.masks],
        )
        for sample in samples
    ]


def visa(root: Path, *rows: str, header: str = "object,split,label,image,mask") -> Path:
    (root / "split_csv").mkdir(parents=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return touch(root, *(name for row in rows for name in row.split(",")[3:] if name))


VISA = (
    "candle,train,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "pcb1,train,normal,pcb1/Data/Images/Normal/0001.JPG,",
)

# --- what is found ----------------------------------------------------------------------------------------------------


def test_mvtec(tmp_path):
    dataset = read_dataset(touch(tmp_path / "bolt", *MVTEC), "mvtec")
    root = tmp_path / "bolt"
    assert (dataset.name, dataset.validation, dataset.has_masks) == ("bolt", (), True)
    assert [sample.path.name for sample in dataset.train] == ["000.png", "001.png", "010.png"]
    assert all(sample.label == 0 and sample.defect == "good" for sample in dataset.train)
    assert listed(root, dataset.test) == [
        ("test/good/000.png", 0, "good", []),
        ("test/pit/000.png", 1, "pit", ["ground_truth/pit/000_mask.png"]),
        ("test/scratch/000.png", 1, "scratch", ["ground_truth/scratch/000_mask.png"]),
        ("test/scratch/001.png", 1, "scratch", ["ground_truth/scratch/001_mask.png"]),
    ]


def test_mvtec_needs_no_test_images_and_no_masks(tmp_path):
    assert read_dataset(touch(tmp_path / "a", "train/good/0.jpg")).test == ()
    dataset = read_dataset(touch(tmp_path / "b", "train/good/0.jpg", "test/dent/0.jpg"))
    assert (len(dataset.test), dataset.has_masks) == (1, False)


def test_masks_may_have_another_suffix_no_ending_and_capital_letters(tmp_path):
    names = "train/good/0.png test/dent/1.JPG test/dent/2.bmp ground_truth/dent/1.PNG ground_truth/dent/2_mask.TIF"
    masks = [sample.masks[0].name for sample in read_dataset(touch(tmp_path, *names.split())).test]
    assert masks == ["1.PNG", "2_mask.TIF"]


def test_masks_of_normal_images_do_not_count(tmp_path):
    dataset = read_dataset(touch(tmp_path, *MVTEC, "ground_truth/good/000_mask.png"))
    assert dataset.test[0].masks == ()


def test_loco_has_several_masks_per_image_and_holds_images_out(tmp_path):
    names = (
        "train/good/000.png validation/good/000.png validation/good/001.png test/good/000.png "
        "test/logical_anomalies/000.png test/structural_anomalies/000.png "
        "ground_truth/logical_anomalies/000/000.png ground_truth/logical_anomalies/000/001.png "
        "ground_truth/structural_anomalies/000/000.png"
    )
    dataset = read_dataset(touch(tmp_path, *names.split()), "loco")
    assert listed(tmp_path, dataset.validation) == [(f"validation/good/00{i}.png", 0, "good", []) for i in range(2)]
    truth = "ground_truth/logical_anomalies/000"
    assert listed(tmp_path, dataset.test)[1:] == [
        ("test/logical_anomalies/000.png", 1, "logical_anomalies", [f"{truth}/000.png", f"{truth}/001.png"]),
        (
            "test/structural_anomalies/000.png",
            1,
            "structural_anomalies",
            ["ground_truth/structural_anomalies/000/000.png"],
        ),
    ]


def test_btad(tmp_path):
    names = "train/ok/0000.bmp test/ok/0000.bmp test/ko/0001.bmp ground_truth/ko/0001.png"
    dataset = read_dataset(touch(tmp_path, *names.split()), "btad")
    assert listed(tmp_path, dataset.train + dataset.test) == [
        ("train/ok/0000.bmp", 0, "good", []),
        ("test/ok/0000.bmp", 0, "good", []),
        ("test/ko/0001.bmp", 1, "ko", ["ground_truth/ko/0001.png"]),
    ]


def test_visa(tmp_path):
    root = visa(tmp_path / "visa", *VISA)
    dataset = read_dataset(root, "visa", "candle")
    assert dataset.name == "candle"
    assert listed(root, dataset.train) == [("candle/Data/Images/Normal/0001.JPG", 0, "good", [])]
    assert listed(root, dataset.test) == [
        ("candle/Data/Images/Normal/0002.JPG", 0, "good", []),
        ("candle/Data/Images/Anomaly/000.JPG", 1, "anomaly", ["candle/Data/Masks/Anomaly/000.png"]),
    ]
    assert LAYOUTS["visa"].categories(root) == ["candle", "pcb1"]
    assert read_dataset(visa(tmp_path / "one", *VISA[:3]), "visa").name == "candle"


def test_a_spreadsheets_mark_at_the_start_of_the_visa_table(tmp_path):
    assert read_dataset(visa(tmp_path, *VISA[:3], header="\ufeffobject,split,label,image,mask"), "visa").train


def test_named_folders(tmp_path):
    names = "normal/a.png normal_test/b.png abnormal/c.png abnormal/d.png mask/c.png mask/d_mask.png"
    dataset = read_dataset(touch(tmp_path, *names.split()), "folder")
    assert listed(tmp_path, dataset.train + dataset.test) == [
        ("normal/a.png", 0, "good", []),
        ("normal_test/b.png", 0, "good", []),
        ("abnormal/c.png", 1, "abnormal", ["mask/c.png"]),
        ("abnormal/d.png", 1, "abnormal", ["mask/d_mask.png"]),
    ]


def test_a_plain_folder_of_images_is_all_normal(tmp_path):
    root = touch(tmp_path / "bolts", "b10.png", "b2.tiff", "notes.txt", "elsewhere/c.png")
    for category in (None, "bolts"):
        dataset = read_dataset(root, "folder", category)
        assert (dataset.name, [sample.path.name for sample in dataset.train]) == ("bolts", ["b2.tiff", "b10.png"])
        assert dataset.test == dataset.validation == ()


# --- categories -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "train"), [("mvtec", "train/good"), ("loco", "train/good"), ("btad", "train/ok"), ("folder", "normal")]
)
def test_which_category(tmp_path, layout, train):
    root = touch(tmp_path / "sets", f"bolt/{train}/0.png", f"nut/{train}/1.png", "papers/readme.txt")
    assert LAYOUTS[layout].categories(root) == ["bolt", "nut"]
    with pytest.raises(LayoutError, match=r"holds several categories \(bolt, nut\); name one with --category"):
        read_dataset(root, layout)
    with pytest.raises(DataNotFoundError, match=r"no category 'screw' in .*; there is bolt, nut"):
        read_dataset(root, layout, "screw")
    nut = read_dataset(root, layout, "nut")
    assert nut == read_dataset(root / "nut", layout) == read_dataset(str(root / "nut"), layout, "nut")
    assert (nut.name, [sample.path.name for sample in nut.train]) == ("nut", ["1.png"])
    assert LAYOUTS[layout].categories(root / "nut") == []
    with pytest.raises(DataNotFoundError, match=r"no category 'bolt' in .*nut; there is none"):
        read_dataset(root / "nut", layout, "bolt")


def test_the_only_category_need_not_be_named(tmp_path):
    assert read_dataset(touch(tmp_path, "bolt/train/good/0.png")).name == "bolt"


def test_the_category_may_be_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path / "bolt", *MVTEC))
    assert read_dataset(".").name == read_dataset(Path(), category="bolt").name == "bolt"


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_folder(tmp_path, layout):
    with pytest.raises(DataNotFoundError, match=r"data folder .*nowhere not found"):
        read_dataset(tmp_path / "nowhere", layout)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "visa"])
def test_an_empty_folder(tmp_path, layout):
    with pytest.raises(EmptyDataError, match=r"holds no image \(\.bmp, \.jpeg, \.jpg, \.png, \.tif, \.tiff\)"):
        read_dataset(touch(tmp_path, "notes.txt"), layout)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("mvtec", ["test/good/0.png", "test/dent/0.png"]),
        ("mvtec", ["train/ok/0.png"]),  # of another layout
        ("mvtec", ["train/good/notes.txt", "test/good/0.png"]),
        ("loco", ["validation/good/0.png"]),
        ("btad", ["train/good/0.png"]),
        ("folder", ["abnormal/0.png"]),
        ("folder", ["some/where/0.png"]),
    ],
)
def test_no_normal_images(tmp_path, layout, names):
    with pytest.raises(NoNormalImagesError, match=f"no normal training image in layout '{layout}'; choose another"):
        read_dataset(touch(tmp_path, *names), layout)


@pytest.mark.parametrize(
    ("layout", "names"),
    [("mvtec", ["test/good/0.png", "test/dent/0.png"]), ("folder", ["normal_test/0.png", "abnormal/0.png"])],
)
def test_a_set_to_test_on_needs_no_training_images(tmp_path, layout, names):
    dataset = read_dataset(touch(tmp_path, *names), layout, trains=False)
    assert [sample.label for sample in dataset.test] == [0, 1]
    assert dataset.train == ()
    with pytest.raises(NoNormalImagesError):
        read_dataset(touch(tmp_path / "neither", "train/ok/0.png"), layout, trains=False)


def test_an_unknown_layout(tmp_path):
    with pytest.raises(LayoutError, match="unknown layout 'coco'; known: mvtec, visa, loco, btad, folder"):
        read_dataset(tmp_path, "coco")


@pytest.mark.parametrize(
    ("layout", "names", "orphan"),
    [
        ("mvtec", [*MVTEC, "ground_truth/pit/007_mask.png"], "ground_truth/pit/007_mask.png"),
        ("mvtec", [*MVTEC, "ground_truth/dent/000_mask.png"], "ground_truth/dent/000_mask.png"),  # no such kind
        ("mvtec", [*MVTEC, "ground_truth/000_mask.png"], "ground_truth/000_mask.png"),  # of no kind
        ("loco", ["train/good/0.png", "test/a/0.png", "ground_truth/a/1/0.png"], "ground_truth/a/1/0.png"),
        ("btad", ["train/ok/0.png", "test/ko/0.png", "ground_truth/ko/1.png"], "ground_truth/ko/1.png"),
        ("folder", ["normal/0.png", "abnormal/0.png", "mask/1.png"], "mask/1.png"),
        ("folder", ["normal/0.png", "mask/0.png"], "mask/0.png"),
    ],
)
def test_a_mask_without_image(tmp_path, layout, names, orphan):
    with pytest.raises(MaskWithoutImageError, match="belongs to no test image; remove it or add the image") as info:
        read_dataset(touch(tmp_path, *names), layout)
    assert str(tmp_path / orphan) in str(info.value)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("mvtec", MVTEC[:-1]),
        ("loco", ["train/good/0.png", "test/a/0.png", "test/pit/000.png", "ground_truth/a/0/0.png"]),
        ("btad", ["train/ok/0.png", "test/ko/0.png", "test/ko/1.png", "ground_truth/ko/0.png"]),
        ("folder", ["normal/0.png", "abnormal/0.png", "abnormal/1.png", "mask/0.png"]),
    ],
)
def test_a_missing_mask_among_masks(tmp_path, layout, names):
    message = r"1 of \d anomalous test images have no mask, .* first; add the masks, or remove them all"
    with pytest.raises(MissingMaskError, match=message):
        read_dataset(touch(tmp_path, *names), layout)


def test_bad_visa_tables(tmp_path):
    with pytest.raises(LayoutError, match=r"has no split_csv/1cls\.csv; choose another --layout"):
        read_dataset(touch(tmp_path / "none", "a.png"), "visa")
    with pytest.raises(LayoutError, match=r"1cls\.csv: no column label, mask"):
        read_dataset(visa(tmp_path / "columns", header="object,split,image"), "visa")
    with pytest.raises(EmptyDataError, match=r"1cls\.csv lists no image"):
        read_dataset(visa(tmp_path / "empty"), "visa")
    root = visa(tmp_path / "visa", *VISA)
    with pytest.raises(LayoutError, match=r"several categories \(candle, pcb1\); name one with --category"):
        read_dataset(root, "visa")
    with pytest.raises(DataNotFoundError, match=r"no category 'fryum' in .*; there is candle, pcb1"):
        read_dataset(root, "visa", "fryum")
    for name in ("candle/Data/Masks/Anomaly/000.png", "candle/Data/Images/Normal/0001.JPG"):
        (root / name).unlink()
        with pytest.raises(DataNotFoundError, match=rf"{name}, listed in split_csv/1cls\.csv, not found"):
            read_dataset(root, "visa", "candle")
    with pytest.raises(NoNormalImagesError):
        read_dataset(visa(tmp_path / "tests", *VISA[1:3]), "visa")
    bare = "candle,test,anomaly,candle/Data/Images/Anomaly/001.JPG,"
    with pytest.raises(MissingMaskError, match="1 of 2 anomalous"):
        read_dataset(visa(tmp_path / "bare", *VISA[:3], bare), "visa")
    with pytest.raises(DataNotFoundError, match="not found"):  # a row that ends early
        read_dataset(visa(tmp_path / "short", VISA[0], "candle,test,normal"), "visa")


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_are_united_and_resized_by_the_nearest_pixel(tmp_path):
    masks = np.zeros((2, 8, 12), np.uint8)
    masks[0, 2:4, 4:8] = 1
    masks[1, 6:8, 0:4] = 255
    paths = tuple(tmp_path / f"{i}.png" for i in range(2))
    for path, mask in zip(paths, masks, strict=True):
        write_png(path, mask)
    sample = Sample(tmp_path / "image.png", 1, "pit", paths)
    union = read_masks(sample, (8, 12))
    assert union.dtype == bool
    np.testing.assert_array_equal(union, masks.max(0) > 0)
    np.testing.assert_array_equal(read_masks(sample, (8, 12), (4, 3)), union[1::2, 2::4])
    np.testing.assert_array_equal(read_masks(sample, (8, 12), (16, 24)), union.repeat(2, 0).repeat(2, 1))
    assert not read_masks(Sample(tmp_path / "image.png", 0), (8, 12), (4, 3)).any()


def test_a_mask_of_another_size(tmp_path):
    write_png(tmp_path / "m.png", np.zeros((5, 7), np.uint8))
    sample = Sample(tmp_path / "image.png", 1, "pit", (tmp_path / "m.png",))
    with pytest.raises(MaskSizeError, match=r"m\.png is 5x7, but its image image\.png is 7x5; make them the same size"):
        read_masks(sample, (7, 5))


# --- real sets --------------------------------------------------------------------------------------------------------


def real_sets() -> list[Path]:
    root = os.environ.get("EDGE_AD_DATA")
    return sorted(path.parents[1] for path in Path(root).glob("*/*/train/good")) if root else []


@pytest.mark.data
def test_real_sets_are_read_and_their_masks_fit():
    if not real_sets():
        pytest.skip("set EDGE_AD_DATA to a folder of real sets in MVTec layout")
    for root in real_sets():
        dataset: Dataset = read_dataset(root.parent, "mvtec", root.name)
        assert len(dataset.train) == len(list((root / "train" / "good").iterdir()))
        assert len(dataset.test) == len(list((root / "test").glob("*/*")))
        for sample in dataset.test[::10]:
            assert read_masks(sample, image_size(sample.path)).any() == bool(sample.masks)


def test_a_folder_of_data_sets_names_those_of_the_layout(tmp_path):
    touch(tmp_path, "bolts/m8/train/good/0.png", "nuts/train/ok/0.png", "notes.txt", "weights/a.bin")
    with pytest.raises(NoNormalImagesError, match=r"layout 'mvtec'; name one of the data sets in it: bolts$"):
        read_dataset(tmp_path)
    visa(tmp_path / "visa", *VISA)
    with pytest.raises(LayoutError, match=r"has no split_csv/1cls\.csv; name one of the data sets in it: visa$"):
        read_dataset(tmp_path, "visa")
    touch(tmp_path, "plain/one/normal/0.png", "plain/two/normal/0.png")
    with pytest.raises(NoNormalImagesError, match=r"layout 'folder'; name one of the data sets in it: plain$"):
        read_dataset(tmp_path, "folder")
