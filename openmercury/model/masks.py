"""The one attention rule. Every token carries (`end`, `group`); `group` is −1 on clean tokens.

    token q sees token k   ⇔   k is clean and position(k) < end(q),   or   group(q) = group(k) ≥ 0

A clean token has end = its position + 1 and so is causal. The noisy tokens of one block share a group, and their end
is where the block starts. Prefill, decoding, verification, commit and training all follow from this line.

Training rows are [noisy ‖ clean] over the same L positions. With blocks of 4 starting at offset 1:

    position   0 1 2 3 4 5 6 7 8          noisy 5 sees clean 0‥4 and noisy 5‥8
    block      0 1 1 1 1 2 2 2 2          clean 5 sees clean 0‥5
"""

from __future__ import annotations

from torch import Tensor

CLEAN = -1  # the group of a clean token
NOBODY = -2  # the group of a key slot that holds no token of this forward


def visible(end_BQ: Tensor, group_BQ: Tensor, position_BT: Tensor, group_BT: Tensor) -> Tensor:
    """The rule as a boolean mask [B, Q, T]: may query q see key t?"""
    before = (group_BT == CLEAN)[:, None, :] & (position_BT[:, None, :] < end_BQ[:, :, None])
    together = (group_BQ >= 0)[:, :, None] & (group_BQ[:, :, None] == group_BT[:, None, :])
    return before | together
