"""What a job is given besides its groups of options: prompts, images, labels, images made elsewhere.

Standard library only.
"""

from dataclasses import asdict, dataclass
from typing import Any, Optional

from dmqbench.config.names import LABELS


@dataclass(frozen=True)
class EvaluateConfig:
    """Images made elsewhere (npz or folder), for ``task=evaluate``.

    ``name`` and ``bits`` are how their row is called and what its author says of them; ``prompts`` is a text file
    with one prompt a line, in the order of the images.
    """

    samples: Optional[str] = None
    fp_samples: Optional[str] = None
    name: Optional[str] = None
    bits: Optional[str] = None
    prompts: Optional[str] = None


@dataclass(frozen=True)
class InputsConfig:
    """What samples are made of, besides noise.

    images: what is restored or edited: a folder or an archive (npz); null: those shipped for the dataset.
    prompts: a file of them, of the evaluation and, without ``calibration_prompts``, of calibration too; ``column``: of
    a table; ``negative_prompt``: what guidance leads away from, null: what the model's pipeline has for none.
    labels: of the samples of a model of classes: ``balanced``, index mod classes, or ``random``.
    """

    images: Optional[str] = None
    prompts: Optional[str] = None
    calibration_prompts: Optional[str] = None
    column: Optional[str] = None
    negative_prompt: Optional[str] = None
    labels: str = LABELS[0]

    @property
    def of_text(self) -> dict[str, str]:
        """What is given of prompts."""
        others = ("images", "labels")
        return {key: value for key, value in asdict(self).items() if key not in others and value is not None}

    @property
    def balanced(self) -> bool:
        return self.labels == LABELS[0]

    @property
    def facts(self) -> dict[str, Any]:
        """What is given besides images; nothing where all is as it was before there were prompts."""
        return self.of_text if self.balanced else {**self.of_text, "labels": self.labels}


@dataclass(frozen=True)
class EditConfig:
    """``strength``: in (0, 1], the share of the sampler's steps that an edited image is noised for and taken back."""

    strength: float = 0.5
