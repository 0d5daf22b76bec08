"""How an encoder is trained on scans without labels (`Pretraining`)."""

from dataclasses import dataclass

from tfmuscle.config.settings import Settings, option

PRETRAINING_METHODS = ("pcl", "gcl", "simclr")


@dataclass(frozen=True)
class Pretraining(Settings):
    """What contrastive pre-training takes for alike."""

    method: str = option(
        "pcl", "slices at the same place are alike; or in the same quarter; or none", choices=PRETRAINING_METHODS
    )
    threshold: float = option(0.1, "positions, from 0 to 1 along the scan, that differ by less are the same place")
    temperature: float = option(0.1, "by which similarities are divided")

    def __post_init__(self) -> None:
        self._check_choices()
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; a share of the scan from above 0 to 1 is needed")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; a positive number is needed")
