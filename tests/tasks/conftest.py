import pytest
from transformers import BertTokenizer

ENTRIES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]


@pytest.fixture(scope="session")
def tokenizer() -> BertTokenizer:
    """Each of four letters is a word."""
    return BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)})
