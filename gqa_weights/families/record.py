"""What a family is: one frozen record that holds all that this project has noted about it.

The readers and writers of config.json, params.json and GGUF fields are subclasses, and name no family: a family is
added by adding its record to `records`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gqa_spec.config import AttentionConfig
from gqa_spec.model_config import ModelConfig
from gqa_weights.families.converted import TensorMapping
from gqa_weights.families.tensors import StoredTensor, TensorNames

Values = Mapping[str, Any]


class ReadOnlyFamilyError(ValueError):
    """A family that is read but not written."""


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """name: as the files say it. tensors: the names and the layout of its weights. origin: the Hugging Face family of a
    model of a family from elsewhere. attention_only: the setting because of which only the attention is supported.
    """

    name: str
    tensors: TensorNames
    origin: str = ""
    attention_only: str = ""

    file: ClassVar[str]

    @property
    def writable(self) -> bool:
        return not self.attention_only and not self.origin

    @abstractmethod
    def read_config(self, values: Values, tensors: TensorMapping) -> ModelConfig:
        """The settings of a file -> ModelConfig. Raises ValueError that names each that is unknown or unsupported."""

    def read_attention(self, values: Values, tensors: TensorMapping) -> tuple[AttentionConfig, ...]:
        """The settings of the attention layers alone."""
        return self.read_config(values, tensors).attention

    def attention_layers(self, values: Values, count: int) -> Sequence[int]:
        """The numbers, in the file, of the `count` layers that have attention: all but in families that mix."""
        return range(count)

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """ModelConfig -> settings, as far as the family's keys go: the caller reads them back to see what is lost."""
        raise ReadOnlyFamilyError(f"family {self.name} can be read, but not written")

    def as_read(self, config: ModelConfig) -> ModelConfig:
        """The config that is read back, where files of the family say the same in another way."""
        return config

    def constants(self, config: ModelConfig) -> tuple[StoredTensor, ...]:
        """Tensors that hold settings, and no weights."""
        return ()

    def require_whole(self) -> None:
        """Raise ValueError where only the attention of the family is supported."""
        if self.attention_only:
            raise ValueError(
                f"{self.file}: {self.attention_only} of family {self.name} is not supported: "
                "only its attention can be read"
            )


def rows(tensors: TensorMapping, name: str, family: Family) -> int:
    """How many rows a tensor has, for settings that only the tensors say."""
    if name not in tensors:
        raise ValueError(f"{family.file}: missing {name} of family {family.name}")
    return tensors.info(name).shape[0]
