"""Attention: exact softmax over all given keys."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attend(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v as [B, L, H, D]; keys and values [B, M, H, D]."""
    out_BHLD = scaled_dot_product_attention(q_BLHD.transpose(1, 2), k_BMHD.transpose(1, 2), v_BMHD.transpose(1, 2))
    return out_BHLD.transpose(1, 2)
