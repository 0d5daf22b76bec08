"""What there is to choose from: models with parameter counts, losses with formulas."""

from typing import Any

from tfmuscle import losses, models


def list_models() -> list[dict[str, Any]]:
    """Returns name, source, published input and parameter counts of every model."""
    return [models.describe(name) for name in models.available()]


def list_losses() -> list[dict[str, Any]]:
    """Returns name, formula and source of every loss."""
    return losses.describe_losses()
