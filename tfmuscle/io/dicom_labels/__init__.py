"""DICOM's own label objects: segmentations (SEG) and radiotherapy structure sets (RTSTRUCT).

The user has labels drawn in a clinical program, or wants the labels of a network back in it. `label_object_kind` tells
what a file is; `read_segmentation` and `read_structure_set` return masks, which may overlap; `write_segmentation`
writes labels as a SEG that refers, slice by slice, to the series they were predicted from.

Terms. A *segment* is one structure of a SEG, stored as *frames*: one slice of one segment each, where empty slices are
usually left out. A *contour* is a closed polygon of a structure set, drawn in one slice. DICOM's world is LPS and ends
here, as in `io/dicom`. Arrays are `(column, row, slice)`, slices in order of their place along the normal.

No message names a patient, and no structure is called after one (`names.py`).
"""

from tfmuscle.io.dicom_labels.listing import label_object_names
from tfmuscle.io.dicom_labels.objects import label_object_kind
from tfmuscle.io.dicom_labels.segmentation import read_segmentation
from tfmuscle.io.dicom_labels.structure_set import read_structure_set
from tfmuscle.io.dicom_labels.writing import write_segmentation

__all__ = ["label_object_kind", "label_object_names", "read_segmentation", "read_structure_set", "write_segmentation"]
