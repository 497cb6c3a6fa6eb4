"""How data sets are organised on disk, and which images of them are for what.

========== =========================================================================================================
layout     structure
========== =========================================================================================================
``mvtec``  ``train/good``, ``test/good``, ``test/<defect>``, ``ground_truth/<defect>/<stem>_mask.*``
``loco``   as mvtec, plus ``validation/good``; ``ground_truth/<defect>/<stem>/*``, several masks per image, whose
           pixel values ``defects_config.json`` explains
``btad``   ``train/ok``, ``test/ok``, ``test/ko``, ``ground_truth/ko/<stem>.*``
``visa``   ``split_csv/1cls.csv`` with columns object, split, label, image, mask
``folder`` ``normal`` and optionally ``normal_test``, ``abnormal``, ``mask/<stem>.*``; or just images, all normal
========== =========================================================================================================

The root is the folder of one category, or the folder of several with the category named beside it. Where masks go by
the image's stem, ``_mask`` may follow it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_ad.errors import (
    DataNotFoundError,
    EmptyDataError,
    LayoutError,
    MaskSizeError,
    MaskWithoutImageError,
    MissingMaskError,
    NoNormalImagesError,
)
from edge_ad.imaging import IMAGE_SUFFIXES, image_files, read_mask, resize_mask
from edge_ad.tiling import Size, format_size

NORMAL = "good"


@dataclass(frozen=True)
class Sample:
    """One image: its file, whether it is anomalous (1) or normal (0), its kind of defect, its ground-truth masks."""

    path: Path
    label: int
    defect: str = NORMAL
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """The images of one category.

    Attributes:
        name: category name.
        train: normal images to fit on.
        test: normal and anomalous images.
        validation: normal images the layout itself holds out; empty for most.
        defects_config: where the layout says how much of a region must be found (`edge_ad.data.saturation`), whether it
            is there or not; None for most.
    """

    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()
    defects_config: Path | None = None

    @property
    def has_masks(self) -> bool:
        """Whether the anomalous test images have ground truth."""
        return any(sample.masks for sample in self.test)


def read_masks(sample: Sample, image_size: Size, size: Size | None = None) -> NDArray[np.bool_]:
    """The union of a sample's masks, bool, at ``size`` (nearest) or at its own; all False without masks.

    Args:
        image_size: (H, W) of the sample's image file.

    Raises:
        MaskSizeError: a mask is not of the image's size.
    """
    union = np.zeros(image_size, bool)
    for path in sample.masks:
        mask = read_mask(path)
        check_mask_size(mask.shape, path, sample, image_size)
        union |= mask
    return union if size is None else resize_mask(union, size)


def check_mask_size(found: tuple[int, ...], path: Path, sample: Sample, image_size: Size) -> None:
    """Raises `MaskSizeError` unless ``found``, the shape of the mask ``path``, is the size of the sample's image."""
    if found != image_size:
        raise MaskSizeError(
            f"mask {path} is {format_size(found)}, but its image {sample.path.name} is "
            f"{format_size(image_size)}; make them the same size"
        )


class Layout(Protocol):
    """A way to organise a data set."""

    def categories(self, root: Path) -> list[str]:
        """Categories under ``root``; empty where ``root`` is itself one."""

    def has(self, root: Path) -> bool:
        """Whether ``root``, one category or several, is organised like this."""

    def read(self, root: Path, category: str | None) -> Dataset:
        """The images of one category. Raises the errors of `read_dataset`."""


def read_dataset(
    root: str | Path, layout: str = "mvtec", category: str | None = None, *, trains: bool = True
) -> Dataset:
    """Find the images of a data set.

    Args:
        root: its folder.
        layout: how it is organised.
        category: where it has several.
        trains: it is to have normal training images; else test images are enough.

    Raises:
        DataNotFoundError: no such folder or category.
        EmptyDataError: no image in it.
        NoNormalImagesError: no normal training image.
        LayoutError: unknown layout, another structure, or several categories and none named.
        MaskWithoutImageError, MissingMaskError: masks and anomalous test images do not correspond.
    """
    if layout not in LAYOUTS:
        raise LayoutError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    root = Path(root)
    if not root.is_dir():
        raise DataNotFoundError(f"data folder {root} not found")
    dataset = LAYOUTS[layout].read(root, category)
    if not dataset.train and (trains or not dataset.test):
        if not dataset.test and not any(_files(root)):
            raise EmptyDataError(f"{root} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        remedy = _remedy(root, LAYOUTS[layout])
        raise NoNormalImagesError(f"{root}: no normal training image in layout {layout!r}; {remedy}")
    defective = [sample for sample in dataset.test if sample.label]
    if dataset.has_masks and (bare := [sample for sample in defective if not sample.masks]):
        raise MissingMaskError(
            f"{len(bare)} of {len(defective)} anomalous test images have no mask, {bare[0].path} first; "
            "add the masks, or remove them all to evaluate images only"
        )
    return dataset


@dataclass(frozen=True)
class FolderLayout:
    """Layouts that are a matter of folder names.

    Args:
        train, normal_test, validation: folders of normal images.
        test: folder with one sub-folder per kind, or None where ``defects`` names them.
        defects: fixed folders of anomalous images by kind.
        truth: folder of all masks.
        masks: the mask files in ``truth`` of a kind of defect, by the stem of their image.
        defects_config: the file that explains the masks' pixel values.
    """

    train: str
    normal_test: str
    test: str | None
    truth: str
    masks: Callable[[Path, str], Mapping[str, Sequence[Path]]]
    defects: tuple[tuple[str, str], ...] = ()
    validation: str | None = None
    defects_config: str | None = None

    def categories(self, root: Path) -> list[str]:
        """See `Layout.categories`."""
        if (root / self.train).is_dir():
            return []
        return sorted(path.name for path in root.iterdir() if (path / self.train).is_dir())

    def has(self, root: Path) -> bool:
        """See `Layout.has`."""
        return (root / self.train).is_dir() or bool(self.categories(root))

    def read(self, root: Path, category: str | None) -> Dataset:
        """See `Layout.read`."""
        base = self._base(root, category)
        normal = partial(_samples, label=0)
        anomalous: list[Sample] = []
        for folder, kind in self._defects(base):
            masks = self.masks(base / self.truth, kind)
            anomalous += [Sample(path, 1, kind, tuple(masks.get(path.stem, ()))) for path in image_files(folder)]
        self._check_orphans(base, anomalous)
        return Dataset(
            name=category or base.resolve().name,
            train=normal(base / self.train),
            test=(*normal(base / self.normal_test), *anomalous),
            validation=normal(base / self.validation) if self.validation else (),
            defects_config=base / self.defects_config if self.defects_config else None,
        )

    def _base(self, root: Path, category: str | None) -> Path:
        names = self.categories(root)
        if not names and category in (None, root.resolve().name):
            return root
        return root / _choose(root, names, category)

    def _defects(self, base: Path) -> list[tuple[Path, str]]:
        if self.test is None:
            return [(base / folder, kind) for folder, kind in self.defects if (base / folder).is_dir()]
        test = base / self.test
        if not test.is_dir():
            return []
        folders = sorted(path for path in test.iterdir() if path.is_dir())
        return [(path, path.name) for path in folders if path != base / self.normal_test]

    def _check_orphans(self, base: Path, samples: Iterable[Sample]) -> None:
        """Some sets have empty masks for normal images too: those do not count."""
        truth = base / self.truth
        of_normal = truth / Path(self.normal_test).name
        used = {path for sample in samples for path in sample.masks}
        unused = (path for path in _files(truth) if path not in used and of_normal not in path.parents)
        if orphan := min(unused, default=None):
            raise MaskWithoutImageError(f"mask {orphan} belongs to no test image; remove it or add the image")


class PlainLayout:
    """``normal``, ``normal_test``, ``abnormal``, ``mask``; or images alone, all of them normal."""

    _named = FolderLayout(
        train="normal",
        normal_test="normal_test",
        test=None,
        truth="mask",
        masks=lambda truth, _: _masks_by_name(truth),
        defects=(("abnormal", "abnormal"),),
    )

    def categories(self, root: Path) -> list[str]:
        """See `Layout.categories`."""
        return [] if image_files(root) else self._named.categories(root)

    def has(self, root: Path) -> bool:
        """See `Layout.has`; a folder of images alone may be anything."""
        return self._named.has(root)

    def read(self, root: Path, category: str | None) -> Dataset:
        """See `Layout.read`."""
        name = root.resolve().name
        if category in (None, name) and not (root / "normal").is_dir() and image_files(root):
            return Dataset(name, _samples(root, label=0))
        return self._named.read(root, category)


class VisaLayout:
    """VisA's one-class split: paths in the csv are relative to the root."""

    _csv = Path("split_csv", "1cls.csv")

    def categories(self, root: Path) -> list[str]:
        """See `Layout.categories`."""
        return sorted({row["object"] for row in self._rows(root)})

    def has(self, root: Path) -> bool:
        """See `Layout.has`."""
        return (root / self._csv).is_file()

    def read(self, root: Path, category: str | None) -> Dataset:
        """See `Layout.read`."""
        category = _choose(root, self.categories(root), category)
        rows = [row for row in self._rows(root) if row["object"] == category]
        train = tuple(self._sample(root, row) for row in rows if row["split"] == "train" and row["label"] == "normal")
        test = tuple(self._sample(root, row) for row in rows if row["split"] == "test")
        return Dataset(category, train, test)

    def _rows(self, root: Path) -> list[dict[str, str]]:
        path = root / self._csv
        if not path.is_file():
            raise LayoutError(f"{root} has no {self._csv.as_posix()}; {_remedy(root, self)}")
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark at the start
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
        wanted = {"object", "split", "label", "image", "mask"}
        if missing := wanted - set(reader.fieldnames or ()):
            raise LayoutError(f"{path}: no column {', '.join(sorted(missing))}")
        if not rows:
            raise EmptyDataError(f"{path} lists no image")
        return rows

    @staticmethod
    def _sample(root: Path, row: dict[str, str]) -> Sample:
        path = root / row["image"]
        normal = row["label"] == "normal"
        masks = () if normal or not row["mask"] else (root / row["mask"],)
        for file in (path, *masks):
            if not file.is_file():
                raise DataNotFoundError(f"{file}, listed in split_csv/1cls.csv, not found")
        return Sample(path, 0) if normal else Sample(path, 1, "anomaly", masks)


def _samples(folder: Path, label: int, defect: str = NORMAL) -> tuple[Sample, ...]:
    return tuple(Sample(path, label, defect) for path in image_files(folder)) if folder.is_dir() else ()


def _files(root: Path) -> Iterable[Path]:
    return (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _remedy(root: Path, layout: Layout) -> str:
    """What to do where ``root`` is no data set of the layout."""
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and layout.has(path))
    return f"name one of the data sets in it: {', '.join(found)}" if found else "choose another --layout"


def _choose(root: Path, names: Sequence[str], category: str | None) -> str:
    """The category asked for, or the only one."""
    if category is None and len(names) > 1:
        raise LayoutError(f"{root} holds several categories ({', '.join(names)}); name one with --category")
    if category is not None and category not in names:
        raise DataNotFoundError(f"no category {category!r} in {root}; there is {', '.join(names) or 'none'}")
    return category or names[0]


def _masks_by_name(folder: Path) -> dict[str, list[Path]]:
    """Files called as their image, ``_mask`` after it or not."""
    masks: dict[str, list[Path]] = {}
    for path in image_files(folder) if folder.is_dir() else ():
        masks.setdefault(path.stem.removesuffix("_mask"), []).append(path)
    return masks


def _masks_by_folder(folder: Path) -> dict[str, list[Path]]:
    """Folders called as their image."""
    if not folder.is_dir():
        return {}
    return {path.name: image_files(path) for path in folder.iterdir() if path.is_dir()}


LAYOUTS: dict[str, Layout] = {
    "mvtec": FolderLayout(
        train="train/good",
        normal_test="test/good",
        test="test",
        truth="ground_truth",
        masks=lambda truth, kind: _masks_by_name(truth / kind),
    ),
    "visa": VisaLayout(),
    "loco": FolderLayout(
        train="train/good",
        normal_test="test/good",
        test="test",
        truth="ground_truth",
        masks=lambda truth, kind: _masks_by_folder(truth / kind),
        validation="validation/good",
        defects_config="defects_config.json",
    ),
    "btad": FolderLayout(
        train="train/ok",
        normal_test="test/ok",
        test=None,
        truth="ground_truth",
        masks=lambda truth, kind: _masks_by_name(truth / kind),
        defects=(("test/ko", "ko"),),
    ),
    "folder": PlainLayout(),
}
SATURATED_LAYOUTS = tuple(
    name for name, layout in LAYOUTS.items() if isinstance(layout, FolderLayout) and layout.defects_config
)  # whose data sets say how much of a region must be found
