"""What ATen's operations mean for the paths through a network (names only, no torch).

An operation that is in none of these tables passes a single branch through and multiplies
several ("product"); so new pointwise operations need no entry.
"""

from __future__ import annotations

__all__ = [
    "ACTIVATIONS",
    "CONVOLUTIONS",
    "CREATIONS",
    "FORMULAS",
    "LOOKUPS",
    "NORMALIZATIONS",
    "PASSIVE",
    "PRODUCTS",
    "RECURRENT",
    "SELECTIONS",
    "SHARING",
    "SLICES",
    "STATISTICS",
    "UNREAD",
    "VIEWS",
]

ACTIVATIONS = {
    "celu",
    "elu",
    "gelu",
    "glu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "rrelu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softshrink",
    "tanh",
    "threshold",
}

NORMALIZATIONS = {
    "_native_batch_norm_legit",
    "batch_norm",
    "cudnn_batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "native_batch_norm",
    "native_group_norm",
    "native_layer_norm",
    "rms_norm",
}

CONVOLUTIONS = {
    "_convolution",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
}

PRODUCTS = {"matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addmv"} | {
    "einsum",
    "inner",
    "tensordot",
}
"""Matrix products; with a parameter on one side, they are linear layers."""

UNREAD = {"addbmm", "bilinear", "chain_matmul", "linalg_multi_dot"}
"""Products that are summed up, for whose weights there is no rule."""

RECURRENT = {"gru", "gru_cell", "lstm", "lstm_cell", "rnn_relu", "rnn_relu_cell"} | {
    "rnn_tanh",
    "rnn_tanh_cell",
}

CREATIONS = {
    "empty_like",
    "full_like",
    "new_empty",
    "new_full",
    "new_ones",
    "new_tensor",
    "new_zeros",
    "ones_like",
    "rand_like",
    "randn_like",
    "zeros_like",
}
"""What takes only shape and device of a tensor."""

LOOKUPS = {"_embedding_bag", "embedding", "embedding_bag", "gather", "index", "index_select"}
"""What picks entries by integers."""

SELECTIONS = {"fmax", "fmin", "masked_scatter", "maximum", "minimum", "where"}
"""What takes each entry from one of its branches."""

STATISTICS = {"linalg_vector_norm", "norm", "rsqrt", "std", "std_mean", "var", "var_mean"}
"""By what a normalisation that is written out divides."""

FORMULAS = (
    STATISTICS
    | {"cos", "erf", "exp", "expm1", "log", "log1p", "pow", "reciprocal"}
    | {
        "sin",
        "sqrt",
        "square",
    }
)
"""Parts of formulas: a branch and a formula of it are one branch when they are added."""

VIEWS = {
    "_reshape_alias",
    "_to_copy",
    "_unsafe_view",
    "adjoint",
    "alias",
    "clone",
    "contiguous",
    "detach",
    "expand",
    "expand_as",
    "flatten",
    "lift_fresh_copy",
    "mH",
    "mT",
    "matrix_H",
    "movedim",
    "numpy_T",
    "permute",
    "reshape",
    "squeeze",
    "swapaxes",
    "t",
    "to",
    "transpose",
    "type_as",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
}
"""The same values in another shape or order."""

SLICES = {
    "chunk",
    "narrow",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "tensor_split",
    "unbind",
    "unsafe_chunk",
    "unsafe_split",
}
"""Some of the values."""

SHARING = (VIEWS | SLICES) - {
    "_to_copy",
    "alias",
    "clone",
    "contiguous",
    "lift_fresh_copy",
    "to",
    "type_as",
}
"""What shares memory with its operand, so that writing to it writes there."""

PASSIVE = VIEWS | {
    "add",
    "alpha_dropout",
    "div",
    "dropout",
    "feature_dropout",
    "mul",
    "native_dropout",
}
"""What leaves a sum a sum: reshaping, dropout; scaling and shifting by constants."""
