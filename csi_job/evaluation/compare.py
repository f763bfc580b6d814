"""Compare two models on the same images, with paired intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from csi_job.errors import DataError
from csi_job.evaluation.difference import Difference, paired_differences
from csi_job.evaluation.evaluate import Evaluation
from csi_job.evaluation.measures import HEADLINE


@dataclass(frozen=True)
class Comparison:
    """All differences between a model and a baseline on one split."""

    model: Evaluation
    baseline: Evaluation
    differences: dict[str, Difference]

    @property
    def summary(self) -> str:
        """Return the result on the headline metric in one sentence."""
        headline, split = self.differences[HEADLINE], self.model.split
        if headline.difference is None or headline.verdict == "undefined":
            reason = headline.interval.reason or "undefined"
            return f"The {split} set is too small to compare the two models: {reason}."
        model, baseline = self.model.predictions, self.baseline.predictions
        if np.array_equal(model.probabilities_NZK, baseline.probabilities_NZK):
            return "Both models make the same predictions, which happens when the search finds the baseline to be best."
        verdict = (
            f"the difference is within the noise of the {split} set"
            if headline.verdict == "within the noise"
            else f"the model is {headline.verdict} than the baseline on the {split} set"
        )
        return (
            f"Macro F1 {headline.model:.3f}, baseline {headline.baseline:.3f}, difference {headline.difference:+.3f} "
            f"({self.model.settings.confidence:.0%} interval {headline.interval.low:+.3f} to "
            f"{headline.interval.high:+.3f}): {verdict}."
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the warnings about either model, each once."""
        return tuple(dict.fromkeys((*self.model.warnings, *self.baseline.warnings)))

    def to_json(self) -> dict[str, Any]:
        """Return every number of the comparison; it identifies no patient, file or image."""
        return {
            "format": 1,
            "model": self.model.model,
            "baseline": self.baseline.model,
            **self.model.provenance(),
            "outcome": self.summary,
            "metrics": {name: difference.to_json() for name, difference in self.differences.items()},
            "warnings": list(self.warnings),
        }


def compare_evaluations(model: Evaluation, baseline: Evaluation) -> Comparison:
    """Compare two evaluations under the model's bootstrap settings; raise `DataError` if they cover other images."""
    same_images = model.predictions.pseudonyms == baseline.predictions.pseudonyms
    if not same_images or not np.array_equal(model.predictions.zones_NZ, baseline.predictions.zones_NZ):
        raise DataError("the two models were evaluated on different images", hint="evaluate both on the same cache")
    return Comparison(model, baseline, paired_differences(model.predictions, baseline.predictions, model.settings))
