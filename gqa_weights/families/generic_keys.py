"""Keys of config.json that belong to no family: of transformers' base class, of its generation, of tools that write.

Source: `PreTrainedConfig` of transformers 5.23, and of 4, whose `to_dict()` also dumps what generation takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GENERATION = {
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "prefix", "remove_invalid_values",
    "repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip
_BASE = {
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_experts_implementation", "_name_or_path", "_output_attentions", "architectures", "attn_implementation",
    "auto_map", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "cls_token_id", "dtype",
    "eos_token_id", "experts_implementation", "finetuning_task", "id2label", "initializer_range", "is_decoder",
    "keys_to_ignore_at_inference", "label2id", "mask_token_id", "model_type", "num_labels", "output_attentions",
    "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type", "return_dict", "sep_token_id",
    "task_specific_params", "tf_legacy_loss", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version",
    "unk_token_id", "use_bfloat16", "use_cache",
}  # fmt: skip
_TOOLS = {
    "_flash_attn_2_enabled", "_sliding_window_pattern", "flash_attn", "gradient_checkpointing", "is_llama_config",
    "max_sequence_length", "model_max_length", "neftune_noise_alpha", "seq_length", "transformers.js_config",
    "unsloth_fixed", "unsloth_version", "use_flash_attn",
}  # fmt: skip

# Keys that change no result of a model in eval mode, or whose whole content is in other keys.
IGNORED = frozenset(_BASE | _GENERATION | _TOOLS)

# Keys of experts and their routers, in families of which only the attention is read.
OF_EXPERTS = re.compile(
    r".*(expert|router|moe|shared_intermediate|mtp|swiglu).*|norm_topk_prob|n_group|topk_(group|method)|scoring_func|"
    r"first_k_dense_replace|decoder_sparse_step|mlp_only_layers|routed_scaling_factor|num_nextn_predict_layers|"
    r"initial_context_length|use_routing_bias|quantization_config|mlp_bias|"
    r"(embedding|residual)_multiplier|logits_scaling"
)
# Keys of which all but these values would change the maths of any family.
ONLY: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "add_cross_attention", "is_encoder_decoder", "rope_interleaved", "tie_encoder_decoder",
            "use_bidirectional_attention", "use_mrope",
        ),
        (False, None),
    ),
    **dict.fromkeys(("causal", "is_causal", "scale_attn_weights", "use_rope", "use_rotary"), (True, None)),
    "partial_rotary_factor": (None, 1, 1.0),
}  # fmt: skip
