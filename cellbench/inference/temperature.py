"""Temperature that turns a run's probabilities into confidences."""

from typing import NamedTuple

from cellbench.artifacts.folder import RunFolder
from cellbench.artifacts.predictions import read_predictions
from cellbench.metrics.probabilities import fit_temperature


class Temperature(NamedTuple):
    """Temperature by which a run's probabilities are scaled (Guo et al., ICML 2017)."""

    value: float
    """The temperature; 1 if it cannot be fitted."""
    why: str
    """The data that it is fitted to, or the reason why it cannot be fitted, in words."""

    @classmethod
    def of_run(cls, folder: RunFolder) -> "Temperature":
        """Fit the temperature to a run's predictions of its validation split.

        Raises:
            UserError: The run's predictions.csv is damaged.
        """
        path = folder.predictions
        val = read_predictions(path)[1].get("val") if path.is_file() else None
        if val is None:
            return cls(1.0, "the run has no validation predictions to fit it on")
        fitted = fit_temperature(val.labels, val.probabilities)
        return cls(fitted, f"fitted on {len(val.labels)} images (val)")
