"""One module for each file format. `read` returns the names, shapes and dtypes of the tensors, each with a function
that reads its data; `write`, in the formats that are written, streams the tensors of a `Job`.

safetensors, npz and orbax are read and written; torch (.pt, .pth, .bin), meta (its folder of such files) and gguf are
read only.
"""
