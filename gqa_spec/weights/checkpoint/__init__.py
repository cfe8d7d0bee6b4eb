"""Checkpoint files as mappings: a tensor's name -> its array, read when it is asked for; and files written back.

tensors: what a checkpoint is. readers: one function for each format. folders: several files as one checkpoint.
writers: one tensor in memory at a time, under temporary names until all is there.
"""

from gqa_spec.weights.checkpoint.folders import open_checkpoint
from gqa_spec.weights.checkpoint.tensors import Checkpoint, CheckpointError, TensorInfo
from gqa_spec.weights.checkpoint.writers import save_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo", "open_checkpoint", "save_checkpoint"]
