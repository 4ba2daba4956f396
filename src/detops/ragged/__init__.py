"""Batches of samples of different sizes, and indexing over whole batches of them.

Names and semantics are those of ACCV-Lab's `batching_helpers`, on the CPU and on GPUs; in code written for it, use
`import detops.ragged as batching_helpers`.
"""

from detops._version import __version__
from detops.ragged.batch import RaggedBatch
from detops.ragged.indexing import (
    batched_index_mapping,
    batched_indexing_access,
    batched_indexing_write,
    batched_inverse_indexing_access,
)
from detops.ragged.masks import (
    batched_bool_indexing,
    batched_bool_indexing_write,
    get_indices_from_mask,
    get_mask_from_indices,
)
from detops.ragged.processing import (
    apply_mask_to_tensor,
    average_over_targets,
    combine_data,
    get_compact_from_named_tuple,
    get_compact_lists,
    squeeze_except_batch_and_sample,
    sum_over_targets,
)

__all__ = [
    "RaggedBatch",
    "__version__",
    "apply_mask_to_tensor",
    "average_over_targets",
    "batched_bool_indexing",
    "batched_bool_indexing_write",
    "batched_index_mapping",
    "batched_indexing_access",
    "batched_indexing_write",
    "batched_inverse_indexing_access",
    "combine_data",
    "get_compact_from_named_tuple",
    "get_compact_lists",
    "get_indices_from_mask",
    "get_mask_from_indices",
    "squeeze_except_batch_and_sample",
    "sum_over_targets",
]
