"""lit_distil: pretrain a BERT-family encoder, distil it into a smaller one, fine-tune either, from YAML."""

__version__ = "0.1.0"
