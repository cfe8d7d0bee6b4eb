"""Every family: `FAMILIES` maps its name to its record. A new family is one more record in one of these modules."""

from gqa_weights.families.record import Family
from gqa_weights.families.records.canonical import manifest_families
from gqa_weights.families.records.gguf import GGUF
from gqa_weights.families.records.huggingface import HUGGINGFACE
from gqa_weights.families.records.meta import META

_FOREIGN = (*HUGGINGFACE, *GGUF, *META)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_FOREIGN, *manifest_families(_FOREIGN))}
