"""Image and text data sets, their batch order, augmentation, tokenizers: host code, plain NumPy.

Pixels stay ``uint8`` until a batch is made: :func:`batch_indices` says which images step ``s`` takes,
:func:`augment` moves them, :func:`normalize` makes the floats that a model sees.  A text is a row of tokens;
:func:`window_starts` says where the windows of step ``s`` begin, :func:`windows` cuts them out.
"""

from __future__ import annotations

from xpformer.data.augment import Augmentation, augment
from xpformer.data.corpora import corpus_data, load_corpus, load_gpt2
from xpformer.data.digits import load_digits
from xpformer.data.files import load_image
from xpformer.data.idx import read_idx
from xpformer.data.images import ImageData, ImageSet, normalize
from xpformer.data.mnist import load_mnist
from xpformer.data.order import batch_indices, epoch_order, steps_per_epoch
from xpformer.data.splits import split_stratified, split_validation
from xpformer.data.text import TextData, load_text, text_data
from xpformer.data.tokenizers import BytePairs, Bytes, Characters, Tokenizer, read_tokenizer
from xpformer.data.windows import sentence_starts, window_starts, windows

__all__ = [
    "Augmentation",
    "BytePairs",
    "Bytes",
    "Characters",
    "ImageData",
    "ImageSet",
    "TextData",
    "Tokenizer",
    "augment",
    "batch_indices",
    "corpus_data",
    "epoch_order",
    "load_corpus",
    "load_digits",
    "load_gpt2",
    "load_image",
    "load_mnist",
    "load_text",
    "normalize",
    "read_idx",
    "read_tokenizer",
    "sentence_starts",
    "split_stratified",
    "split_validation",
    "steps_per_epoch",
    "text_data",
    "window_starts",
    "windows",
]
