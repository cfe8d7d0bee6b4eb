"""Checkpoint files as mappings, tensor name -> array, read on access; and files written from such mappings.

tensors: the mapping and its error. open: a file or a folder -> one checkpoint. save: write a checkpoint with one tensor
in memory at a time. atomic: replace a file or folder in one step. scratch: temporary folders.
job: what a writer is given. pieces, checksums: the bytes of a tensor. json_files: settings beside the tensors. files,
printable: what is read, and what of it is shown. formats: one module for each file format.
"""

from gqa_weights.checkpoint.open import open_checkpoint
from gqa_weights.checkpoint.save import save_checkpoint
from gqa_weights.checkpoint.tensors import Checkpoint, CheckpointError, TensorInfo

__all__ = ["Checkpoint", "CheckpointError", "TensorInfo", "open_checkpoint", "save_checkpoint"]
