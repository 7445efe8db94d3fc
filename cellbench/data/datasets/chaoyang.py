"""Colon histology patches with the labels of three pathologists."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellbench.config import strict_json
from cellbench.data.download.transfer import OnRequest
from cellbench.data.file_module import FileDataModule
from cellbench.data.table import Part, Sample
from cellbench.utils.errors import UserError

CLASSES = ("normal", "serrated", "adenocarcinoma", "adenoma")
ANNOTATORS = ("label_A", "label_B", "label_C")
FILES: dict[Part, str] = {"train": "train.json", "test": "test.json"}

# 353042_4-IMG005x014-1.JPG: the slide, of which the first number is the case; row and column; and
# the class, so that a name must never reach a model.
_NAME = re.compile(r"(?P<slide>(?P<case>\d+)[^/]*)-IMG\d+x\d+-\d\.jpe?g", re.IGNORECASE)


@dataclass(kw_only=True, eq=False, repr=False)
class ChaoyangDataModule(FileDataModule):
    """Colon histology patches: 6,160 tiles of 512x512, four classes, noisy labels.

    Official split: 1,111 normal, 842 serrated, 1,404 adenocarcinoma and 664 adenoma tiles train,
    705, 321, 840 and 273 test. Three pathologists labelled each; of the training tiles they agree
    on 67.4 %, and with the final label annotator A on 86.3 %, B on 81.3 %, C on 99.5 %. The
    training tiles are of 102 slides and 68 cases, which a split by image divides.

    Layout: `train.json` and `test.json` (lists of label, name, label_A, label_B, label_C), and
    the images under their names, as `train/353042_4-IMG005x014-1.JPG`. Source: bupt-ai-cz/HSA-NRL
    on GitHub, on request, for non-commercial use, not to be passed on.

    Zhu et al.: Hard sample aware noise robust learning for histopathology image classification.
    IEEE Trans Med Imaging 41 (2022), ieeexplore.ieee.org/document/9600806.
    """

    shows_cells = False
    root: Path = Path("data/chaoyang")
    label: Literal["final", "A", "B", "C", "majority", "votes"] = "final"
    """Label that counts as the truth: the final one, an annotator's, or the majority's (the final
    one if all three differ). votes trains on the share of the annotators that chose each class, and
    validates and tests on the final label."""
    group: Literal["slide", "case"] = "case"
    """Unit that a random split keeps whole: the slide, or the case, which may have several."""

    how_to_get = (
        "ask the authors (github.com/bupt-ai-cz/HSA-NRL) and give the folder that holds "
        "train.json, test.json, train and test as --data.root"
    )

    source = OnRequest(licence="non-commercial")

    @property
    def published(self) -> tuple[int, ...] | None:
        """The numbers of the final labels, training and test tiles together."""
        return (1816, 1163, 2244, 937) if self.label in ("final", "votes") else None

    @property
    def targets(self) -> np.ndarray | None:
        """Share of the annotators that chose each class, if training aims at the votes."""
        if self.label != "votes":
            return None
        votes = np.array([sample.votes for sample in self.table.samples])
        shares: np.ndarray = np.eye(len(CLASSES), dtype=np.float32)[votes].mean(axis=1)
        return shares

    @property
    def classes(self) -> tuple[str, ...]:
        """normal, serrated, adenocarcinoma, adenoma."""
        return CLASSES

    def list_samples(self) -> list[Sample]:
        """List the tiles of both lists.

        Raises:
            UserError: A list or a tile is missing, or a list has another shape.
        """
        samples = []
        for part, name in FILES.items():
            path = self._require(self.root / name, "the list")
            for number, entry in enumerate(_read(path)):
                samples.append(self._sample(part, entry, f"{path}, entry {number}"))
        return samples

    def _sample(self, part: Part, entry: Any, where: str) -> Sample:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UserError(f"{where}: not an object with a name and labels")
        votes: list[Any] = [entry.get(key) for key in ("label", *ANNOTATORS)]
        if not all(type(vote) is int and 0 <= vote < len(CLASSES) for vote in votes):
            raise UserError(
                f"{where}: label, label_A, label_B and label_C must be 0 to 3; they are {votes}"
            )
        match = _NAME.fullmatch(Path(entry["name"]).name)
        if match is None:
            raise UserError(f"{where}: '{entry['name']}' does not tell its slide")
        image = self._require(self._below(entry["name"], where), "the image")
        final, *three = votes
        chosen = {"final": final, "votes": final, "majority": _majority(three, final)}
        chosen |= dict(zip("ABC", three, strict=True))
        return Sample(
            entry["name"],
            int(chosen[self.label]),
            image,
            group=match[self.group],
            split=part,
            votes=tuple(three),
        )


def _majority(votes: list[Any], final: Any) -> Any:
    return next((vote for vote in votes if votes.count(vote) > 1), final)


def _read(path: Path) -> list[Any]:
    entries = strict_json.read(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a list of objects with name, label, label_A, _B and _C")
    return entries
