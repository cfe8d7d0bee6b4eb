"""The families of a Hugging Face folder.

Source: `configuration_*.py` and `modeling_*.py` of transformers 5.23. `defaults` says what each family's code takes
where config.json is silent, and so which keys it reads.
"""

from gqa_weights.families.records.huggingface.attention_alone import ATTENTION_ALONE
from gqa_weights.families.records.huggingface.experts import EXPERTS
from gqa_weights.families.records.huggingface.gemma import GEMMAS
from gqa_weights.families.records.huggingface.layer_norm import LAYER_NORM
from gqa_weights.families.records.huggingface.rms_norm import RMS_NORM

HUGGINGFACE = (*RMS_NORM, *GEMMAS, *LAYER_NORM, *EXPERTS, *ATTENTION_ALONE)
