"""DICOM in, volumes in RAS+ mm out.

The user has a folder from a scanner or an archive: nested, with localisers, several contrasts, reports, perhaps a
DICOMDIR or everything in one zip. `list_series` says what is there and what each part is fit for; `read_dicom` reads
one part, chosen by name.

The data goes sources -> headers -> frames -> stacks -> pixels:

* a *source* is a file, or a member of a zip, read in memory and never unpacked onto the disk;
* a *frame* is one two-dimensional image with its place: a whole file, one frame of an enhanced multi-frame object, or
  one tile of a Siemens mosaic. After this step the three are treated alike;
* a *stack* is what one volume is made of. A series is split by image size, orientation and pixel size, and, where
  several images lie at one place, by what tells them apart: kind of image (water, fat, magnitude, phase), echo time,
  inversion time, b-value, flip angle, time. Properties that merely vary from slice to slice split nothing;
* a stack that is no evenly spaced pile of grey images is refused with its reason, never guessed at.

DICOM's world is LPS and ends here. `ImageOrientationPatient` gives the directions in which the column index and the row
index grow; the array is `(I, J, K)` = (column, row, slice), so the affine's first two columns are those directions
times the pixel size, and the third is the step from slice to slice. Slices are sorted by their position along the
normal of the image plane, never by file name or instance number, which scanners and archives rewrite.

Values are the stored numbers through `RescaleSlope` and `RescaleIntercept`, as every DICOM viewer shows them. Philips'
private scale slope is not applied: anonymisation removes private tags, and one scan must not have two scales. A note
gives the divisor. `MONOCHROME1` (high is dark) is noted and not inverted: it is a rule for display, not a value.

Rejected: highdicom's volume reader, which refuses what scanners write against the standard; resampling of tilted
gantries, which invents voxels; nibabel's Siemens header reader, which warns on import.

No message names a patient: pydicom's own warnings, which may quote any value, are silenced, only the tags named in
`headers` are read, and a series description that repeats the patient's name or number is withheld.
"""

from tfmuscle.io.dicom.series import SeriesInfo, list_series, read_dicom
from tfmuscle.io.dicom.sources import holds_dicom, is_dicom_file, is_zip_file

__all__ = ["SeriesInfo", "holds_dicom", "is_dicom_file", "is_zip_file", "list_series", "read_dicom"]
