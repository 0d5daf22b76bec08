"""What each number in a label image means.

Terms. An *id* is the number in the user's file (any non-negative integer; 0 is background). A *class index* is what a
network sees: 0, 1, ..., `num_classes - 1` in the order of the ids, and `IGNORE` (-1) for a voxel that nobody labelled.
Unknown is not background: `LabelMap.ignore` is the id that marks such voxels in files, as in nnU-Net's `dataset.json`.

Sides are read from names: a word `left`/`right` anywhere, or `l`/`r` at either end (`femur_left`, `Right femur`,
`soleus_L`, `psoasLeft`; not `L4`). The partner of a name is the same name with the other side. A mirror image swaps
partners; a label map in which a sided structure lacks its partner (one leg only) cannot be mirrored, for a mirrored
left leg is a right leg that the map has no name for. `flip_permutation` says so by returning None.
"""

import colorsys
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

IGNORE = -1
"""Class index of a voxel nobody labelled: never background, masked in losses and metrics."""
_COUNTED_IDS = 1 << 16
"""Ids below this are counted, not sorted, to find which there are."""

MUSCLE_GROUPS: tuple[tuple[str, ...], ...] = (
    ("psoas_major", "iliacus", "gluteus_minimus"),
    ("gluteus_maximus", "gluteus_medius", "tensor_fasciae_latae", "piriformis"),
    ("obturator_internus", "obturator_externus", "quadratus_femoris", "external_rotators"),
    ("pectineus", "adductor_brevis", "adductor_longus"),
    ("adductor_magnus", "gracilis", "sartorius"),
    ("semimembranosus", "semitendinosus", "biceps_femoris_long_head", "biceps_femoris_short_head"),
    ("rectus_femoris", "vastus_intermedius", "vastus_lateralis", "vastus_medialis"),
    ("gastrocnemius_lateral_head", "gastrocnemius_medial_head", "soleus", "popliteus"),
    ("tibialis_anterior", "phalangeal_extensors", "fibulari"),
    ("tibialis_posterior", "flexor_digitorum_longus", "flexor_hallucis_longus"),
)
"""The 35 lower-limb muscles of Ni et al. 2019 in ten groups of neighbours."""

LOWER_LIMB_MUSCLES: tuple[str, ...] = tuple(sorted(name for group in MUSCLE_GROUPS for name in group))
LOWER_LIMB_BONES: tuple[str, ...] = ("femur", "tibia", "fibula", "patella", "hip")
"""Bones with TotalSegmentator's names; `hip` is the hip bone (os coxae)."""

SIDES = ("left", "right")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_GOLDEN_RATIO = 0.618034
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
"""Words of a name, in snake_case, CamelCase or plain text."""


@dataclass(frozen=True)
class LabelMap:
    """Ids, names, sides and the ignore id of a family of label images.

    Attributes:
        names: id -> name, with or without background; stored with background 0, sorted by id.
        ignore: id of voxels that nobody labelled, or None.

    >>> legs = LabelMap({1: "femur_left", 2: "femur_right"}, ignore=255)
    >>> legs.num_classes, legs.partner("femur_left"), legs.flip_permutation()
    (3, 'femur_right', (0, 2, 1))
    """

    names: Mapping[int, str]
    ignore: int | None = None

    def __post_init__(self) -> None:
        names = {0: "background"} | {int(key): str(value) for key, value in self.names.items()}
        if min(names) < 0:
            raise ValueError(f"label id {min(names)} is negative; ids are 0 (background), 1, 2, ...")
        if len(set(names.values())) != len(names):
            twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
            raise ValueError(f"label names {twice} stand for several ids; give every id a name of its own")
        if self.ignore is not None and self.ignore in names:
            raise ValueError(f"ignore id {self.ignore} is also the label {names[self.ignore]!r}; choose a free id")
        object.__setattr__(self, "names", dict(sorted(names.items())))

    def __hash__(self) -> int:
        return hash((tuple(self.names.items()), self.ignore))

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids in class order, background first."""
        return tuple(self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.names)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names in class order without background."""
        return tuple(name for key, name in self.names.items() if key != 0)

    def id_of(self, name: str) -> int:
        """Returns the id of `name`."""
        for key, value in self.names.items():
            if value == name:
                return key
        raise ValueError(f"no label is called {name!r}; there are {', '.join(self.structures)}")

    def unknown_ids(self, labels: np.ndarray) -> tuple[int, ...]:
        """Returns the ids present in `labels` that this map does not name."""
        known = set(self.ids) | ({self.ignore} if self.ignore is not None else set())
        return tuple(int(key) for key in np.unique(labels) if key not in known)

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Turns ids into class indices, `int16`, with `IGNORE` for unlabelled voxels.

        Raises:
            ValueError: `labels` holds an id that the map does not name.
        """
        present, inverse = np.unique(labels, return_inverse=True)
        index_of = {key: index for index, key in enumerate(self.ids)}
        if self.ignore is not None:
            index_of[self.ignore] = IGNORE
        missing = [key.item() for key in present if key not in index_of]
        if missing:
            raise ValueError(f"label ids {missing} are not in the label map {list(self.ids)}; name them or remove them")
        table = np.array([index_of[int(key)] for key in present], dtype=np.int16)
        return table[inverse].reshape(labels.shape)

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Turns class indices into ids, in the smallest unsigned type; `IGNORE` becomes the ignore id."""
        largest = max(*self.ids, self.ignore or 0)
        table = np.array([*self.ids, self.ignore or 0], dtype=np.min_scalar_type(largest))
        return table[indices]

    @staticmethod
    def side(name: str) -> str | None:
        """Returns "left", "right" or None, read from the name.

        >>> LabelMap.side("soleus_L"), LabelMap.side("Right femur"), LabelMap.side("lateral_head")
        ('left', 'right', None)
        """
        found = find_side(name)
        return None if found is None else {"l": "left", "r": "right"}.get(found[0], found[0])

    def partner(self, name: str) -> str | None:
        """Returns the same structure's name on the other side, or None when it has no side or no partner here."""
        other = mirrored_name(name)
        return other if other != name and other in self.names.values() else None

    def flip_permutation(self) -> tuple[int, ...] | None:
        """Returns, for every class index, the class it becomes in a left/right mirror image.

        None when a sided structure lacks its partner: then images must not be mirrored.
        """
        index_of = {name: index for index, name in enumerate(self.names.values())}
        mirrored = [mirrored_name(name) for name in self.names.values()]
        if any(name not in index_of for name in mirrored):
            return None
        return tuple(index_of[name] for name in mirrored)

    def colour(self, name: str) -> tuple[int, int, int]:
        """Returns a fixed RGB colour (0..255), the right side darker than the left; background is black."""
        if name == self.names[0]:
            return (0, 0, 0)
        base = [without_side(other) for other in self.structures]
        order = sorted(set(base)).index(without_side(name))
        value = 0.72 if self.side(name) == "right" else 1.0
        red, green, blue = colorsys.hsv_to_rgb(order * _GOLDEN_RATIO % 1.0, 0.55 + 0.35 * (order % 2), value)
        return round(255 * red), round(255 * green), round(255 * blue)

    def merged(self, groups: Mapping[str, Iterable[str]]) -> tuple["LabelMap", dict[int, int]]:
        """Joins structures: new name -> old names; structures not named become background.

        Returns:
            The new map with ids 1, 2, ... in the order of `groups`, and the table old id -> new id for `relabel`.
        """
        table = dict.fromkeys(self.ids, 0)
        for new_id, (name, members) in enumerate(groups.items(), start=1):
            if isinstance(members, str):
                raise ValueError(f"group {name!r} is the text {members!r}; give a list of structures")
            for member in members:
                if table[self.id_of(member)]:
                    raise ValueError(f"{member!r} is in two groups; a voxel has one label")
                table[self.id_of(member)] = new_id
        if self.ignore is not None:
            table[self.ignore] = self.ignore
        names = dict(enumerate(groups, start=1))
        return LabelMap(names, ignore=self.ignore), table

    def to_dict(self) -> dict[str, int]:
        """Returns nnU-Net's form, name -> id, with `ignore` when there is one."""
        content = {name: key for key, name in self.names.items()}
        return content if self.ignore is None else content | {"ignore": self.ignore}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "LabelMap":
        """Reads nnU-Net's form (name -> id) or the Decathlon's (id as text -> name)."""
        if content and all(str(key).isdigit() for key in content):
            return cls({int(key): str(name) for key, name in content.items()})
        for name, key in content.items():
            if isinstance(key, bool) or not isinstance(key, int):
                raise ValueError(
                    f"label {name!r} has the id {key!r}; one integer is needed (regions are not supported)"
                )
        names = {key: name for name, key in content.items() if name != "ignore"}
        if len(names) != len(content) - ("ignore" in content):
            raise ValueError("two label names share one id; give every structure an id of its own")
        return cls(names, ignore=content.get("ignore"))


def distinct(labels: np.ndarray) -> np.ndarray:
    """Returns the distinct values of `(I, J, K)` labels, sorted, as `np.unique` but without sorting every voxel.

    Slab by slab in the order of memory, because sorting a whole limb at once takes gigabytes.

    >>> distinct(np.array([[[5, 0, 5]]]))
    array([0, 5])
    """
    slabs = np.moveaxis(labels, int(np.argmax(np.abs(labels.strides))), 0)
    if np.can_cast(labels.dtype, np.int64) and labels.min() >= 0 and labels.max() < _COUNTED_IDS:
        bins = int(labels.max()) + 1
        counts = sum(np.bincount(slab.ravel(order="K"), minlength=bins) for slab in slabs)
        return np.flatnonzero(counts).astype(labels.dtype)
    return np.unique(np.concatenate([np.unique(slab) for slab in slabs]))


def relabel(labels: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Replaces ids by `table` (old id -> new id); every id present must be in the table.

    >>> relabel(np.array([0, 3, 3]), {0: 0, 3: 1}).tolist()
    [0, 1, 1]
    """
    present, inverse = np.unique(labels, return_inverse=True)
    missing = [key.item() for key in present if key not in table]
    if missing:
        raise ValueError(f"label ids {missing} have no entry in the table {dict(table)}; add them")
    new = np.array([table[int(key)] for key in present], dtype=np.int64)
    if new.min(initial=0) < 0:
        raise ValueError(f"new label ids {sorted(set(table.values()))} must not be negative")
    return new.astype(np.min_scalar_type(int(new.max(initial=0))))[inverse].reshape(labels.shape)


def lower_limb(*, bones: bool = True, sides: tuple[str, ...] = SIDES) -> LabelMap:
    """Returns the label map of the 35 lower-limb muscles, and five bones, of the given sides.

    >>> lower_limb().num_classes
    81
    """
    names = LOWER_LIMB_MUSCLES + (LOWER_LIMB_BONES if bones else ())
    return LabelMap(dict(enumerate((f"{name}_{side}" for name in names for side in sides), start=1)))


def mirrored_name(name: str) -> str:
    """Returns the name of the structure in a mirror image; a name without a side stays as it is.

    >>> mirrored_name("Soleus_L"), mirrored_name("spine")
    ('Soleus_R', 'spine')
    """
    found = find_side(name)
    if found is None:
        return name
    token, start, stop = found
    other = _OTHER_SIDE[token]
    written = name[start:stop]
    other = other.upper() if written.isupper() else other.capitalize() if written[0].isupper() else other
    return name[:start] + other + name[stop:]


def without_side(name: str) -> str:
    """Returns what a structure is called on either side; a name without a side stays as it is.

    >>> without_side("soleus_left"), without_side("Right femur"), without_side("spine")
    ('soleus', 'femur', 'spine')
    """
    found = find_side(name)
    return name if found is None else (name[: found[1]] + name[found[2] :]).strip(" _-.")


def find_side(name: str) -> tuple[str, int, int] | None:
    """Finds the word that names the side: (word in small letters, start, stop); None without one, or with both.

    >>> find_side("SoleusLeft"), find_side("spine")
    (('left', 6, 10), None)
    """
    words = [(m.group().lower(), m.start(), m.end()) for m in _WORD.finditer(name)]
    found = [word for word in words if word[0] in SIDES]
    if not found and len(words) > 1:
        ends = [word for word in (words[0], words[-1]) if word[0] in ("l", "r")]
        found = [word for word in ends if not _beside_digit(name, word)]
    return found[0] if len({word[0] for word in found}) == 1 else None


def _beside_digit(name: str, word: tuple[str, int, int]) -> bool:
    return any(character.isdigit() for character in name[max(0, word[1] - 1) : word[1]] + name[word[2] : word[2] + 1])
