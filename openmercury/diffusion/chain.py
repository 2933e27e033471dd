"""Drafts of one forward, chosen one after the other: each knows the token before it (`model.adapter.Chain`).

A noisy row does not know which of the likely tokens comes before its own, so the likeliest token of each row is a draft
that need not hang together; and behind a draft that fell, none knows the token that took its place. With x the hidden
state of a row, the chain adds E Oᵀ silu(B e + S x) to its logits E x, where e is the embedding of the token before.
Only a row's shortlist is looked at: adding to all logits would cost the head once more for every draft.

Temperature and noise are those of `sample`: a draft is the shortlist's argmax of (logits + chain) / T + noise.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.diffusion.sample import NO_TOKEN
from openmercury.model.transformer import Transformer

RUN = 128  # tokens of the vocabulary of which the best is a candidate: a program of the CUDA head sees so many
LISTED = 8  # candidates of a row: in 100 full masks the right token is among 8 where it is among 24 in 104


class Shortlist(NamedTuple):
    """The best token of each run of the vocabulary, and of these the `LISTED` best, best first, [M, C]: their ids,
    scores (what argmax decides on) and logits (÷ temperature, without noise)."""

    token_MC: Tensor
    score_MC: Tensor
    logit_MC: Tensor

    def rows(self, index: Tensor) -> Shortlist:
        """Those of some rows."""
        return Shortlist(*(field[index] for field in self))


def shortlist(logits_MV: Tensor, score_MV: Tensor) -> Shortlist:
    """What `sample.choose` would have chosen from, had the best not been enough; of what `sample.scores` gave."""
    runs_MTN = F.pad(score_MV, (0, -score_MV.shape[1] % RUN), value=-torch.inf).unflatten(1, (-1, RUN))
    best_MT, at_MT = runs_MTN.max(-1)
    score_MC, run_MC = best_MT.topk(min(LISTED, best_MT.shape[1]), dim=-1)
    token_MC = run_MC * RUN + at_MT.gather(1, run_MC)
    return Shortlist(token_MC, score_MC, logits_MV.gather(1, token_MC))


class Linker:
    """The chain of a model in the form that decoding wants: `out_VR` holds E Oᵀ, one short vector a token."""

    def __init__(self, model: Transformer) -> None:
        assert model.adapter is not None
        assert model.adapter.chain is not None
        self.model, self.chain = model, model.adapter.chain
        with torch.inference_mode():
            self.out_VR = cast(Tensor, model.head(self.chain.out)).t().contiguous()

    def before(self, token_N: Tensor) -> Tensor:
        """B e of tokens, [N, rank]."""
        return self.chain.of_token(self.model.embed(token_N, None))

    def __call__(
        self, given_RG: Tensor, hidden_RGD: Tensor, listed: Shortlist, sure_RG: Tensor, heat_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [R, G] and their confidence. `given_RG` stands before them; where it is NO_TOKEN, the token chosen
        just now does.

        `sure_RG` is the confidence of the shortlists' first entries (fields [R, G, C]), `heat_R` the temperature. What
        is not listed is taken to weigh what it weighs without the chain.
        """
        state_RGK = self.chain.of_state(hidden_RGD)
        weight_RGC = listed.logit_MC - listed.logit_MC[..., :1] + sure_RG.log()[..., None]  # log of their probability
        rest_RG = (1 - weight_RGC.exp().sum(-1)).clamp(min=0)
        heat_R1 = torch.where(heat_R > 0, heat_R, 1.0)[:, None]
        token_R, drafts, sure = torch.zeros_like(given_RG[:, 0]), [], []
        for k in range(hidden_RGD.shape[1]):
            token_R = torch.where(given_RG[:, k] == NO_TOKEN, token_R, given_RG[:, k])
            inner_RK = F.silu(self.before(token_R) + state_RGK[:, k])
            pull_RC = (self.out_VR[listed.token_MC[:, k]] * inner_RK[:, None]).sum(-1) / heat_R1
            at_R1 = (listed.score_MC[:, k] + pull_RC).argmax(-1, keepdim=True)
            token_R = listed.token_MC[:, k].gather(1, at_R1)[:, 0]
            share_RC = (weight_RGC[:, k] + pull_RC).exp()
            drafts.append(token_R)
            found_R = share_RC.gather(1, at_R1)[:, 0] / (rest_RG[:, k] + share_RC.sum(-1))
            sure.append(torch.where(sure_RG[:, k] > 0, found_R, 0.0))  # 0: broken logits, or nobody asked
        return torch.stack(drafts, dim=1), torch.stack(sure, dim=1)
