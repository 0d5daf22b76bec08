"""The run folder of a cascade: what a trained one consists of, and which of its networks are there.

A cascade is a plan (`cascade.json`) and, in `networks/`, one run folder a network. They are opened when they are needed
(`cascade.py`): a muscle needs its own network and those of the groups it is in, so that a cascade of which only some
networks are trained serves for their muscles.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tfmuscle.cascade import CascadePlan, structures_of
from tfmuscle.cascade.plan import PLAN_FILE
from tfmuscle.errors import DataError
from tfmuscle.inference.runs import DONE_FILE, WEIGHTS_FILE

NETWORKS_FOLDER = "networks"
"""Folder in a cascade's run for the runs of its networks, called after them."""


@dataclass(frozen=True, eq=False)
class CascadeRun:
    """A trained cascade: the plan, and the folder its networks are opened from."""

    plan: CascadePlan
    path: Path

    def wanted(self, roi: Iterable[str] = ()) -> tuple[str, ...]:
        """Returns the muscles that a region of interest asks for: muscles, structures or groups; all without any.

        Raises:
            ValueError: a name that is none of these.
        """
        known: dict[str, tuple[str, ...]] = {group.name: group.muscles for group in self.plan.groups}
        for muscle, sides in structures_of(self.plan.base.label_map).items():
            if any(network.name == muscle for network in self.plan.muscles):
                known |= dict.fromkeys((muscle, *sides.values()), (muscle,))
        asked = list(roi)
        if unknown := [name for name in asked if name not in known]:
            raise ValueError(f"nothing is called {', '.join(unknown)}; there are {', '.join(known)}")
        muscles = {muscle for name in asked for muscle in known[name]}
        return tuple(network.name for network in self.plan.muscles if not asked or network.name in muscles)

    def check(self, roi: Iterable[str] = ()) -> tuple[str, ...]:
        """Returns the muscles asked for, once it is seen that all networks they need have weights.

        Raises:
            DataError: one has none.
            ValueError: an unknown name.
        """
        muscles = self.wanted(roi)
        if missing := [name for name in self.needed(muscles) if not (self.folder_of(name) / WEIGHTS_FILE).is_file()]:
            raise DataError(
                f"{self.path}: {len(missing)} of its networks are not trained: {', '.join(missing[:5])}"
                f"{' and more' * (len(missing) > 5)}; go on with 'tfmuscle fit --resume', or name others with --roi"
            )
        return muscles

    def needed(self, muscles: Iterable[str]) -> list[str]:
        """Returns the names of the networks that find these muscles, those of groups first."""
        wanted = list(muscles)
        groups = [group.name for group in self.plan.groups if set(group.muscles) & set(wanted)]
        return [*groups, *(network.name for network in self.plan.muscles if network.name in wanted)]

    def unfinished(self, muscles: Iterable[str]) -> list[str]:
        """Returns the networks that these muscles need and whose training has not ended."""
        return [name for name in self.needed(muscles) if not (self.folder_of(name) / DONE_FILE).is_file()]

    def folder_of(self, network: str) -> Path:
        """Returns the run folder of a network."""
        return self.path / NETWORKS_FOLDER / network


def is_cascade(path: str | Path) -> bool:
    """Whether a folder is the run of a cascade."""
    return (Path(path) / PLAN_FILE).is_file()


def load_cascade(path: str | Path) -> CascadeRun:
    """Opens the run folder of a cascade; networks are opened when they are needed.

    Raises:
        DataError: its plan is missing or damaged.
    """
    return CascadeRun(CascadePlan.load(Path(path) / PLAN_FILE), Path(path))
