"""Checkpoint files as mappings: a tensor's name -> its array, read when it is asked for; and files written back.

tensors: what a checkpoint is. opening: a file or a folder as one checkpoint. saving: one tensor in memory at a time,
in place only when all is there (replacing). format_*: how one format is read and, where it is, written.
"""

from gqa_weights.checkpoint.open import open_checkpoint
from gqa_weights.checkpoint.save import save_checkpoint
from gqa_weights.checkpoint.tensors import Checkpoint, CheckpointError, TensorInfo

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo", "open_checkpoint", "save_checkpoint"]
