"""The frame a propagation works in: slices first, one orientation whatever the file's, so that flips change nothing."""

from dataclasses import dataclass

from tfmuscle.volume import Geometry, Volume

_ORIENTATIONS = {"SI": "SPL", "AP": "AIL", "RL": "RIP"}
"""Slices from foot to head, from back to front, from left to right; rows and columns as they are looked at."""


@dataclass(frozen=True, eq=False)
class Frame:
    """How a file's axes lie in the arrays that are worked on, slices first.

    Attributes:
        orientation: of those arrays; None reverses the file's axes.
        grid: of the file.
        axis: of the file, along which slices follow each other.
    """

    orientation: str | None
    grid: Geometry
    axis: int

    def __post_init__(self) -> None:
        fits = self.axis == 2 if self.orientation is None else self.orientation[0] in _pair(self.letter)
        if not fits:
            ours = "the last axis of the file" if self.orientation is None else "/".join(_pair(self.orientation[0]))
            raise ValueError(
                f"drawn slices follow each other along axis {self.axis} ({'/'.join(_pair(self.letter))}), but the"
                f" network goes along {ours}; draw slices across that, or take another network"
            )

    @property
    def letter(self) -> str:
        """Side towards which the file's slices grow."""
        return self.grid.orientation[self.axis]

    @property
    def is_flipped(self) -> bool:
        """Whether slices are numbered the other way round than in the file."""
        return self.orientation is not None and self.orientation[0] != self.letter

    def index(self, number: int) -> int:
        """Turns the number of a slice in the file into that in the frame, or back."""
        return self.grid.shape[self.axis] - 1 - number if self.is_flipped else number

    def way(self, name: str) -> str:
        """Turns the name of a way in the file into that in the frame, or back."""
        swapped = {"forward": "backward", "backward": "forward"}
        return swapped.get(name, name) if self.is_flipped else name

    def turned(self, volume: Volume) -> Volume:
        """Returns a volume of the file in this frame."""
        return volume.reoriented(self.orientation)

    def back(self, volume: Volume) -> Volume:
        """Returns a volume of this frame as it lies in the file."""
        orientation = None if self.orientation is None else self.grid.orientation
        return Volume(volume.reoriented(orientation).array, self.grid)


def frame_of(grid: Geometry, axis: int) -> Frame:
    """Returns the frame of methods that have no orientation of their own."""
    return Frame(_ORIENTATIONS[_pair(grid.orientation[axis])], grid, axis)


def _pair(letter: str) -> str:
    return next(pair for pair in _ORIENTATIONS if letter in pair)
