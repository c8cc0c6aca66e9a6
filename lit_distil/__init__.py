"""lit_distil: pretrain a BERT-family encoder, distil it into a smaller one, fine-tune either, from YAML."""

import os

__version__ = "0.1.0"

# On a CPU, oneDNN keeps what it made for each of the last 1,024 shapes of an activation, and the heap falls to pieces
# around it. Flat batches bring a new shape in every step: within some hundred steps it would be gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
