"""How the embedded model ``digits`` and its classifier are made: ``python -m dmqbench.zoo.digits --help``."""

import argparse

import pytorch_lightning as pl
from safetensors.torch import save_file

from dmqbench.data.digits import load_split
from dmqbench.eval.digit_classifier import CLASSIFIER, DigitClassifier, load_classifier, recognised
from dmqbench.zoo.denoiser import WEIGHTS, UNetShape, save_denoiser, train_denoiser
from dmqbench.zoo.training import ClassifierTraining, Optimizer, fit, save_curve

MODEL = WEIGHTS / "digits"


SHAPE = UNetShape(channels=(32, 48, 80), layers=2, attention=(False, True, True), groups=8)
"""Three resolutions, attention at 8×8 and 4×4."""


def train_classifier(steps: int, seed: int) -> None:
    """Train on four fifths of the scans, and record the accuracy on the rest."""
    pl.seed_everything(seed)
    (images, labels), held_out = load_split()
    module = ClassifierTraining(DigitClassifier(), steps)
    fit(module, images, labels, batch=128, seed=seed)
    weights = {name: value.contiguous() for name, value in module.network.state_dict().items()}
    accuracy = recognised(load_classifier(weights), *held_out).float().mean().item()
    WEIGHTS.mkdir(exist_ok=True)
    save_file(weights, CLASSIFIER)
    save_curve(
        WEIGHTS / "digits_classifier.json",
        module.curve,
        every=20,
        command=f"python -m dmqbench.zoo.digits classifier --steps {steps} --seed {seed}",
        seed=seed,
        steps=steps,
        held_out_accuracy=accuracy,
    )
    print(f"held-out accuracy {accuracy:.4f}")


def make_denoiser(steps: int, seed: int, batch: int) -> None:
    """Train on all scans and write the diffusers folder and its curve."""
    trained = train_denoiser(SHAPE, Optimizer(), steps=steps, batch=batch, seed=seed)
    save_denoiser(
        MODEL,
        trained,
        command=f"python -m dmqbench.zoo.digits denoiser --steps {steps} --batch {batch} --seed {seed}",
        seed=seed,
        steps=steps,
        batch=batch,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("classifier", "denoiser"))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "classifier":
        train_classifier(arguments.steps, arguments.seed)
    else:
        make_denoiser(arguments.steps, arguments.seed, arguments.batch)


if __name__ == "__main__":
    main()
