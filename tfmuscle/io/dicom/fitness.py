"""What a header says its file is no volume for: localisers, projections, labels, reports, colour."""

import re
from dataclasses import replace

from pydicom.dataset import FileDataset

from tfmuscle.io.dicom.frames import WITHOUT_PLACES
from tfmuscle.io.dicom.headers import description, integer, modality_of, uid_name, words
from tfmuscle.io.dicom.stacks import LOCALISER_SLICES, Stack

_NO_IMAGES = {
    "SEG": "labels (a segmentation), not an image; read it as a segmentation",
    "RTSTRUCT": "labels (contours), not an image; read it as a structure set",
    "RTDOSE": "radiation dose, not an image; choose an image series",
    "RTPLAN": "a radiation plan, not an image; choose an image series",
    "SR": "a report or measurements, not an image; choose an image series",
    "PR": "a display setting, not an image; choose an image series",
    "KO": "a list of key images, not an image; choose an image series",
    "ECG": "a waveform, not an image; choose an image series",
    "RWV": "a list of value mappings, not an image; choose an image series",
    "ANN": "annotations, not an image; choose an image series",
    "SM": "a microscope slide, not a volume of the patient; choose an image series",
}
_LOCALISERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVEY"}
_LOCALISER_WORDS = re.compile(r"locali[sz]er|scout|survey|topogram|pilot", re.IGNORECASE)


def named_localiser(stack: Stack, header: FileDataset) -> Stack:
    """Marks a stack as a localiser by what the scanner calls it, and projections as such."""
    types = set(words(header, "ImageType"))
    if "PROJECTION IMAGE" in types:
        return replace(stack, kind="other", problem="projections, not slices; choose a stack of slices")
    few = len(stack.frames) <= LOCALISER_SLICES and _LOCALISER_WORDS.search(description(header))
    if stack.kind == "image" and (types & _LOCALISERS or few):
        return replace(stack, kind="localiser", problem="a localiser; choose a stack of slices")
    return stack


def no_image(header: FileDataset) -> str:
    """Returns why a file holds no grey images at all; "" if it does."""
    kind = uid_name(header.get("SOPClassUID"))
    modality = modality_of(header)
    if "Dose" in kind and modality == "SR":
        return "a dose report, not an image; choose an image series"
    if reason := _NO_IMAGES.get(modality):
        return reason
    if header.get("Rows") is None or header.get("Columns") is None:
        return f"no pixels in it ({kind or 'of no known kind'}); choose an image series"
    colour = " ".join(words(header, "PhotometricInterpretation")) or "MONOCHROME2"
    if integer(header, "SamplesPerPixel", 1) != 1 or not colour.startswith("MONOCHROME"):
        return "colour images; grey values are needed, choose the series without colour"
    count = integer(header, "NumberOfFrames", 1)
    if count > 1 and not any("FunctionalGroups" in element.keyword for element in header):
        return f"{count} {WITHOUT_PLACES}"
    return ""
