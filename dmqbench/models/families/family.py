"""What the configuration of a denoiser says of its inputs and outputs, and how it is called. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from dmqbench.models.config_values import NULL, Kind
from dmqbench.models.folders import CONFIG, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from dmqbench.models.families.text import TextPart

Conditioning = Literal["none", "class", "text"]

Problem = tuple[str, str]
"""A key of a configuration, and what is wrong with its value."""


class Condition(NamedTuple):
    """One condition of one sample; labels are whole numbers."""

    shape: tuple[int, ...]
    whole: bool = False


SIZE = "_size"
"""Height and width of the state, where a job asks for others than the file's: what is added to a ``config.json``."""

GUIDANCE = "guidance"
"""The condition, [B], of networks that embed the scale of guidance and need no second branch."""


class Calling:
    """How a denoiser is called: by state, timestep, and conditions by their names."""

    @property
    def embeds_guidance(self) -> bool:
        """Whether the scale of guidance is a condition of the network, ``GUIDANCE``."""
        return False

    def arguments(
        self, x: "Tensor", timestep: "Tensor", cond: Mapping[str, "Tensor"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of the network's ``forward``.

        Args:
            x: what the network reads, [B, C + C', H, W] with a condition image of C' channels.
            timestep: diffusion time, [B].
            cond: conditions, each of leading size B.
        """
        return (x, timestep), {**cond, "return_dict": False}

    def output(self, network: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what a network says when it is called with ``arguments``."""
        return network(*args, **kwargs)

    def prediction(self, output: Any, x: "Tensor") -> "Tensor":
        """Return what a call with ``x`` predicted, [B, C, H, W], perhaps with a variance of C channels behind it."""
        return output[0]


def patch_problem(config: Mapping[str, Any], usual_size: int) -> Problem | None:
    """Return what is wrong with the size of what a transformer cuts into patches, two wide unless it says otherwise."""
    size, patch = config.get("sample_size", usual_size), config.get("patch_size", 2)
    return ("sample_size", f"is not divisible by patch_size={patch}") if size % patch else None


@dataclass(frozen=True)
class Family(Calling):
    """A class of diffusers' networks, read from one ``config.json``.

    Args:
        condition_channels: how many of the input channels are an image that the network is conditioned on, and not
            the sampler's state. No ``config.json`` says so.

    Raises:
        ModelError: the network needs inputs that this project does not give.
    """

    config: Mapping[str, Any]
    condition_channels: int = 0

    network: ClassVar[str]
    """Its class."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """What older files call the class."""
    norm_type: ClassVar[str | None] = None
    """What tells it from others that had the same older name."""
    part: ClassVar[str] = "unet"
    """What pipelines call the network: their attribute and its folder, ``unet`` or ``transformer``."""
    timestep: ClassVar[str] = "timestep"
    """The name of that argument of the network's ``forward``, of which the first is the sample."""
    blocks: ClassVar[tuple[str, ...]] = ()
    """Classes of what is reconstructed as one unit, by name, where they are not diffusers' usual ones."""
    layers_version: ClassVar[int] = 1
    """Raised when a scope takes in other layers of these networks than before; enters ids from 2 on."""
    time_unit: ClassVar[float] = 1.0
    """What one of the network's timesteps is worth in the schedule's."""
    pipelines: ClassVar[tuple[str, ...]] = ()
    """diffusers' pipelines that make conditions of prompts, where the network reads any; the first if none is named."""
    scheduling: ClassVar[Mapping[str, Any]] = {}
    """What these pipelines make of settings of their scheduler, whatever its file states."""
    text_parts: ClassVar[tuple["TextPart", ...]] = ()
    """What reads prompts, in the pipeline's order; the longest reader decides what is cut."""
    kinds: ClassVar[Mapping[str, Kind]] = {}
    """What values of ``config.json`` may be; a key that is absent has diffusers' default."""

    def __post_init__(self) -> None:
        for key, kind in self.kinds.items():
            if kind is NULL and self.config.get(key) is not None:
                raise ModelError(f"{self.network}: {key}={self.config[key]} is not supported")
        channels, *_ = self.sample_shape
        if self.output_channels not in (channels, 2 * channels):
            raise ModelError(
                f"{self.network}: {channels} input and {self.output_channels} output channels; a denoiser predicts "
                "as many channels as it reads, or twice as many with a learned variance; with a condition image it "
                "reads more, which model.condition and model.condition_channels say"
            )

    @classmethod
    def is_of(cls, config: Mapping[str, Any]) -> bool:
        """Whether a ``config.json`` is of this family."""
        alias = config.get("_class_name") in cls.aliases
        return config.get("norm_type") == cls.norm_type if alias else config.get("_class_name") == cls.network

    @classmethod
    def problem(cls, config: Mapping[str, Any]) -> Problem | None:
        """Return what does not fit within a ``config.json`` whose values are each possible."""
        return None

    @classmethod
    def is_told_sizes(cls, config: Mapping[str, Any]) -> bool:
        """Whether sizes of the image are conditions of a network, which are made where prompts are read."""
        return False

    @classmethod
    def network_class(cls) -> type | None:
        """Return the class of the network, which is built, loaded and saved as diffusers' are (``ModelMixin``,
        ``ConfigMixin``); None: diffusers has one of that name."""
        return None

    @property
    def reads_text(self) -> bool:
        return self.conditioning == "text"

    @property
    def conditioning(self) -> Conditioning:
        if self.text_parts:
            return "text"
        return "none" if self.label_entries is None else "class"

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """What a call is conditioned on, by the name of the network's argument."""
        return {} if self.label_entries is None else {"class_labels": Condition((), whole=True)}

    def encoded(self, pipe: Any, prompt: str) -> dict[str, "Tensor"]:
        """Return the conditions of one prompt, [1, …], as the text parts of its pipeline make them."""
        raise NotImplementedError(f"{self.network} reads no text")

    def encoded_null(self, pipe: Any, negative: str | None) -> dict[str, "Tensor"]:
        """Return the conditions of the unguided branch, [1, …], under a negative prompt or none."""
        return self.encoded(pipe, negative or "")

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the sampler's state."""
        return (self.required("in_channels") - self.condition_channels, *self.sides)

    @property
    def sides(self) -> tuple[int, int]:
        """(H, W) of the sampler's state."""
        size = self.config.get(SIZE) or self.stated_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return height, width

    @property
    def stated_size(self) -> Any:
        """Both sides, or the one number for both, that the file states."""
        return self.required("sample_size")

    @property
    def size_step(self) -> int | None:
        """What sides of the state must be divisible by, where the network takes others than its file's; else None."""
        return None

    @property
    def largest_side(self) -> int | None:
        """The largest side of the state, if there is one."""
        return None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of what the network reads: the sampler's state, and the condition image if there is one."""
        channels, height, width = self.sample_shape
        return channels + self.condition_channels, height, width

    @property
    def image_tokens(self) -> int | None:
        """How many tokens an image is, where the shift of a flow depends on it."""
        return None

    @property
    def output_channels(self) -> int:
        out = self.config.get("out_channels")
        return self.sample_shape[0] if out is None else out

    @property
    def learned_variance(self) -> bool:
        """The second half of the output channels is a variance, which this project drops for a fixed one."""
        return self.output_channels != self.sample_shape[0]

    @property
    def label_entries(self) -> int | None:
        """Rows of the label table, the null label of guidance included; None without labels."""
        return None

    @property
    def classes(self) -> int | None:
        """How many labels are classes, unless a model's own YAML says otherwise."""
        return self.label_entries

    def required(self, key: str) -> Any:
        """Return the value of a key that must be there; ModelError without it."""
        value = self.config.get(key)
        if value is None:
            raise ModelError(f"{self.network}: {CONFIG} has no {key}")
        return value
