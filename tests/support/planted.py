"""A folder of phantoms with planted findings: duplicates, conflicts, torn files, colour, odd
masks, a DICOM file."""

from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, ImageDraw
from pydicom.uid import ExplicitVRLittleEndian

from busray.config import Dataset
from busray.data.images import ImageFolder
from busray.data.phantom import PROBES, phantom
from busray.records import DataSet

CLASSES = ("benign", "malignant", "normal")
CHAIN = tuple(f"normal/chain ({i}).png" for i in range(8))
"""Images whose neighbours look alike in a thumbnail and are other scans."""


def settings(**changes: object) -> Dataset:
    """The section `dataset` of a configuration."""
    return Dataset.model_validate({"path": "unused", "val": 0.2, "test": 0.2, **changes})


def scan_pixels(seed: int, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    return phantom(seed, "benign", PROBES["general"], size).image


def drifting(position: float, rng: np.random.Generator) -> np.ndarray:
    """A bright spot at a position with speckle of its own: what looks alike in a thumbnail and
    is another scan."""
    y, x = np.mgrid[0:128, 0:128] / 128
    tissue = sum(np.cos(np.pi * (a * x + b * y) + a + 2 * b) for a in range(5) for b in range(5))
    spot = np.exp(-((x - position) ** 2 + (y - 0.5) ** 2) / 0.03)
    return ((60 + 8 * tissue + 110 * spot) * rng.uniform(0.6, 1.4, (128, 128))).clip(0, 255).astype(np.uint8)


def plant(folder: Path) -> None:
    """Into a folder of phantoms, whose images are otherwise all different."""
    rng = np.random.default_rng(3)
    benign, malignant, normal = folder / "benign", folder / "malignant", folder / "normal"
    Image.open(benign / "benign (1).png").save(benign / "same pixels.bmp")

    twin = Image.fromarray(scan_pixels(101, (150, 190)))
    twin.save(benign / "near (1).png")
    smaller = twin.resize((160, 126), Image.Resampling.BICUBIC).point([min(255, int(1.15 * v)) for v in range(256)])
    smaller.save(benign / "near (2).jpg", quality=80)

    conflict = Image.fromarray(scan_pixels(102))
    conflict.save(benign / "in both.png")
    conflict.save(malignant / "in both.jpg", quality=85)

    for i, file in enumerate(CHAIN):
        Image.fromarray(drifting(0.2 + 0.045 * i, rng)).save(folder / file)

    (normal / "torn.png").write_bytes((benign / "benign (1).png").read_bytes()[:2000])
    (normal / "no image.png").write_bytes(b"MZ")

    coloured = Image.fromarray(scan_pixels(103)).convert("RGB")
    ImageDraw.Draw(coloured).rectangle((10, 10, 41, 25), outline=None, fill=(255, 0, 0))
    coloured.save(malignant / "coloured.png")
    Image.fromarray(scan_pixels(104)).convert("RGB").save(malignant / "grey in colour file.png")

    Image.fromarray(scan_pixels(105).astype(np.uint16) * 257).save(malignant / "deep.png")

    Image.fromarray(scan_pixels(106)).save(malignant / "masked.png")
    Image.new("1", (128, 128)).save(malignant / "masked_mask.png")
    Image.new("1", (64, 128)).save(malignant / "masked_mask_1.png")
    (malignant / "masked_mask_2.png").write_bytes(b"MZ")
    Image.new("1", (128, 128)).save(malignant / "nobody_mask.png")

    wide = Image.fromarray(scan_pixels(107, (100, 200)))
    wide.save(malignant / "wide.png")
    lesion = Image.new("1", wide.size)
    ImageDraw.Draw(lesion).ellipse((20, 30, 80, 70), fill=1)
    lesion.save(malignant / "wide_mask.png")

    save_dicom(malignant / "clinic.dcm", scan_pixels(108))


def save_dicom(path: Path, pixels: np.ndarray) -> None:
    """With identifiers of a patient, which must appear in no output."""
    dicom = pydicom.Dataset()
    dicom.file_meta = pydicom.dataset.FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dicom.file_meta.MediaStorageSOPClassUID = dicom.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dicom.file_meta.MediaStorageSOPInstanceUID = dicom.SOPInstanceUID = "1.2.3"
    dicom.PatientName, dicom.PatientID, dicom.PatientBirthDate = "Roentgen^Bertha", "ID-4711", "18330422"
    dicom.InstitutionName, dicom.ImageComments = "Wuerzburg", "hand with ring"
    dicom.Rows, dicom.Columns, dicom.SamplesPerPixel = 128, 128, 1
    dicom.PhotometricInterpretation, dicom.PixelRepresentation = "MONOCHROME2", 0
    dicom.BitsAllocated = dicom.BitsStored = 8
    dicom.HighBit = 7
    dicom.PixelData = pixels.tobytes()
    dicom.save_as(path, enforce_file_format=True)


def image_folder(path: Path, size: int = 64, framing: str = "letterbox") -> ImageFolder:
    """Any images of a folder, framed; none of them is in a split."""
    dataset = DataSet("", size, framing, 0, train=(), val=(), test=(), left_out=())
    return ImageFolder(dataset, path, CLASSES)
