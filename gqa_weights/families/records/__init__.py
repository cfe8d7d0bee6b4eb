"""Every family: `FAMILIES` maps its name to its record. A new family is one more record in one of these modules."""

from gqa_weights.families.record import Family
from gqa_weights.families.records.canonical import manifest_families
from gqa_weights.families.records.consolidated import CONSOLIDATED
from gqa_weights.families.records.gguf import GGUF
from gqa_weights.families.records.huggingface import HUGGINGFACE

_FOREIGN = (*HUGGINGFACE, *GGUF, *CONSOLIDATED)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_FOREIGN, *manifest_families(_FOREIGN))}
