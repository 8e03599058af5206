"""The operations, each a pair: one module an operation, its derivation in the module's docstring.

``OPERATIONS`` and ``KERNELS`` are the registry; it is the test table too: an operation without a case fails the tests.
"""

from xpformer.functional._op import Flops, Kernel, Op, Pair
from xpformer.functional.add_broadcast import add_broadcast
from xpformer.functional.attention import attention
from xpformer.functional.bce_with_logits import bce_with_logits
from xpformer.functional.bias_gelu import bias_gelu
from xpformer.functional.conv2d import conv2d
from xpformer.functional.cross_entropy import cross_entropy
from xpformer.functional.drop_path import drop_path
from xpformer.functional.dropout import dropout
from xpformer.functional.embedding import embedding
from xpformer.functional.flatten import flatten
from xpformer.functional.gelu import gelu
from xpformer.functional.layer_norm import layer_norm
from xpformer.functional.linear import linear
from xpformer.functional.mean_tokens import mean_tokens
from xpformer.functional.mse import mse
from xpformer.functional.pad import pad
from xpformer.functional.patch_merging import patch_merging
from xpformer.functional.patchify import patchify
from xpformer.functional.prepend_token import prepend_token
from xpformer.functional.project_to_vocabulary import project_to_vocabulary
from xpformer.functional.relative_position_bias import relative_position_bias
from xpformer.functional.relu import relu
from xpformer.functional.rms_norm import rms_norm
from xpformer.functional.roll import roll
from xpformer.functional.rotary import rotary
from xpformer.functional.sigmoid import sigmoid
from xpformer.functional.silu import silu
from xpformer.functional.softmax import softmax
from xpformer.functional.split_heads import split_heads
from xpformer.functional.swiglu import swiglu
from xpformer.functional.take_token import take_token
from xpformer.functional.tanh import tanh
from xpformer.functional.window_partition import window_partition
from xpformer.functional.window_reverse import window_reverse

OPERATIONS: dict[str, Op] = {
    op.name: op
    for op in (
        add_broadcast,
        attention,
        bce_with_logits,
        bias_gelu,
        conv2d,
        cross_entropy,
        drop_path,
        dropout,
        embedding,
        flatten,
        gelu,
        layer_norm,
        linear,
        mean_tokens,
        mse,
        pad,
        patch_merging,
        patchify,
        prepend_token,
        project_to_vocabulary,
        relative_position_bias,
        relu,
        rms_norm,
        roll,
        rotary,
        sigmoid,
        silu,
        softmax,
        split_heads,
        swiglu,
        take_token,
        tanh,
        window_partition,
        window_reverse,
    )
}

__all__ = [
    "OPERATIONS",
    "Flops",
    "Kernel",
    "Op",
    "Pair",
    "add_broadcast",
    "attention",
    "bce_with_logits",
    "bias_gelu",
    "conv2d",
    "cross_entropy",
    "drop_path",
    "dropout",
    "embedding",
    "flatten",
    "gelu",
    "layer_norm",
    "linear",
    "mean_tokens",
    "mse",
    "pad",
    "patch_merging",
    "patchify",
    "prepend_token",
    "project_to_vocabulary",
    "relative_position_bias",
    "relu",
    "rms_norm",
    "roll",
    "rotary",
    "sigmoid",
    "silu",
    "softmax",
    "split_heads",
    "swiglu",
    "take_token",
    "tanh",
    "window_partition",
    "window_reverse",
]
