"""Conditions of prompts in the run store: made once for a list of prompts and the encoders that read them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from dmqbench.config.checked_job import Job
from dmqbench.config.ids import embeddings_id, unguided_id
from dmqbench.config.model_facts import network_family, prompts_of
from dmqbench.data.noise import Stream
from dmqbench.data.prompts import Prompt
from dmqbench.models.folders import ModelError
from dmqbench.models.location import locate
from dmqbench.models.sizes import image_scale
from dmqbench.models.text import PromptEncoder
from dmqbench.store.artifacts import Store
from dmqbench.store.files import json_text
from dmqbench.tracking.progress import Meter

log = logging.getLogger(__name__)

KIND = "embeddings"
PROMPTS_PER_FILE = 32
"""A killed run goes on with the next file, and more samples add files."""
UNGUIDED = "unguided.safetensors"


@dataclass(eq=False)
class PromptEmbeddings:
    """Conditions of the prompts of one job. Encoders are loaded while they read prompts that the store lacks."""

    job: Job
    store: Store

    def provide(self, counts: Mapping[Stream, int]) -> None:
        """Let the store have the conditions of the first so many samples of streams, and those of no guidance."""
        if not self._pending(counts):
            return
        with self.store.lock(KIND, self._unguided, part=UNGUIDED):  # one process loads encoders, the others wait
            if pending := self._pending(counts):
                self._read(pending)

    def _pending(self, counts: Mapping[Stream, int]) -> list[tuple[Stream | None, int]]:
        """What the store lacks: streams with the first prompt of a file, and None for the conditions of no guidance."""
        pending: list[tuple[Stream | None, int]] = []
        if UNGUIDED not in self.store.verified_files(KIND, self._unguided):
            pending.append((None, 0))
        for stream, count in counts.items():
            pending.extend((stream, start) for start in self._missing(stream, count))
        return pending

    def _read(self, pending: Sequence[tuple[Stream | None, int]]) -> None:
        with Meter(f"prompts of {self.job.model.name}", len(pending)) as meter:
            encoder, cut = self._encoder(), list[Prompt]()
            for stream, start in pending:
                if stream is None:
                    conditions = encoder.encoded_null(self.job.inputs.negative_prompt)
                    self._require_fit(conditions)
                    self._append(self._unguided, UNGUIDED, save(conditions))
                else:
                    part = self._prompts[stream][start : start + PROMPTS_PER_FILE]
                    self._append_part(encoder, stream, start, part)
                    cut += [prompt for prompt in part if encoder.cuts(prompt.text)]
                meter.advance()
        _say_cut(cut)

    def conditions(self, stream: Stream, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the conditions of samples, each with leading size B, which ``provide`` was asked for before."""
        files = self.store.verified_files(KIND, embeddings_id(self.job, stream))
        found = []
        for index in indices:
            place = index % len(self._prompts[stream])
            row = place % PROMPTS_PER_FILE
            with safe_open(files[_name(place - row)], framework="pt") as file:
                found.append({name: file.get_slice(name)[row : row + 1] for name in file.keys()})  # noqa: SIM118
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    @cached_property
    def unguided(self) -> dict[str, Tensor]:
        """The conditions of the unguided branch, without leading size."""
        self.provide({})
        return load_file(self.store.verified_files(KIND, self._unguided)[UNGUIDED])

    @cached_property
    def _prompts(self) -> Mapping[Stream, tuple[Prompt, ...]]:
        return prompts_of(self.job.inputs).of

    @property
    def _unguided(self) -> str:
        return unguided_id(self.job)

    def _missing(self, stream: Stream, count: int) -> Iterator[int]:
        present = self.store.verified_files(KIND, embeddings_id(self.job, stream))
        starts = range(0, min(count, len(self._prompts[stream])), PROMPTS_PER_FILE)
        yield from (start for start in starts if _name(start) not in present)

    def _encoder(self) -> PromptEncoder:
        model = self.job.model
        folder = locate(model.checkpoint)
        return PromptEncoder(folder, network_family(model), image_scale(folder), self.job.device_type)

    def _require_fit(self, conditions: Mapping[str, Tensor]) -> None:
        """Refuse tokens of another width than the network reads."""
        for name, (shape, _) in network_family(self.job.model).conditions.items():
            if len(shape) == 2 and conditions[name].shape[-1] != shape[-1]:
                widths = f"of width {conditions[name].shape[-1]}, and its network reads {shape[-1]}"
                title = f"{self.job.model.label}: its text encoders give {name}"
                raise ModelError(f"{title} {widths}: they do not belong together")

    def _append_part(self, encoder: PromptEncoder, stream: Stream, start: int, part: Sequence[Prompt]) -> None:
        """Keep the conditions of some prompts, and beside them which these are."""
        read = [encoder.encoded(prompt.text) for prompt in part]
        together = {name: torch.stack([each[name] for each in read]) for name in read[0]}
        id = embeddings_id(self.job, stream)
        self._append(id, _listed(start), json_text([prompt._asdict() for prompt in part]).encode())
        self._append(id, _name(start), save(together))

    def _append(self, id: str, name: str, content: bytes) -> None:
        self.store.append_file(KIND, id, name, lambda path: path.write_bytes(content))


def _name(start: int) -> str:
    return f"prompts_{start:06d}.safetensors"


def _listed(start: int) -> str:
    return f"prompts_{start:06d}.json"


def _say_cut(cut: Sequence[Prompt]) -> None:
    if cut:
        start = " ".join(cut[0].text.split())[:60]
        some = "1 prompt is" if len(cut) == 1 else f"{len(cut)} prompts are"
        log.warning("%s longer than what the text encoders read, and cut at the end; the first: %s ...", some, start)
