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
from openmercury.model.adapter import Chain
from openmercury.model.transformer import Transformer

RUN = 128  # tokens of the vocabulary of which the best is a candidate: a program of the CUDA head sees so many
LISTED = 8  # candidates of a row: an oracle over 8 drafts 7.07 tokens a cycle, over 24 it drafts 7.50 (docs/log.md)


class Shortlist(NamedTuple):
    """The best token of each run of the vocabulary, and of these the `LISTED` best, best first, [M, C]: their ids,
    scores (what argmax decides on) and logits (÷ temperature, without noise)."""

    token_MC: Tensor
    score_MC: Tensor
    logit_MC: Tensor

    def rows(self, index: Tensor | tuple[Tensor, Tensor]) -> Shortlist:
        """Those of some rows."""
        return Shortlist(*(field[index] for field in self))


def shortlist(logits_MV: Tensor, score_MV: Tensor) -> Shortlist:
    """What `sample.choose` would have chosen from, had the best not been enough; of what `sample.scores` gave."""
    missing = -score_MV.shape[1] % RUN
    padded = F.pad(score_MV, (0, missing), value=-torch.inf) if missing else score_MV
    runs_MTN = padded.unflatten(1, (-1, RUN))
    best_MT = runs_MTN.amax(-1)
    score_MC, run_MC = best_MT.topk(min(LISTED, best_MT.shape[1]), dim=-1)
    within_MCN = runs_MTN.gather(1, run_MC[..., None].expand(-1, -1, RUN))  # an argmax of all runs takes far longer
    token_MC = run_MC * RUN + within_MCN.argmax(-1)
    return Shortlist(token_MC, score_MC, logits_MV.gather(1, token_MC))


class Linker:
    """The chain of a model in the form that decoding wants: `out_VR` holds E Oᵀ, one short vector a token."""

    def __init__(self, model: Transformer, chain: Chain) -> None:
        self.model, self.chain = model, chain
        with torch.inference_mode():
            self.out_VR = cast(Tensor, model.head(self.chain.out)).t().contiguous()

    def before(self, token_N: Tensor) -> Tensor:
        """B e of tokens, [N, rank]."""
        return self.chain.of_token(self.model.embed(token_N, None))

    def __call__(
        self, given_RG: Tensor, hidden_RGD: Tensor, listed: Shortlist, sure_RG: Tensor, heat_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [R, G] and their confidence. `given_RG` stands before them, or, where it is NO_TOKEN, the token just
        chosen.

        `sure_RG` is the confidence of the shortlists' first entries (fields [R, G, C]), `heat_R` the temperature. What
        is not listed is taken to weigh what it weighs without the chain.
        """
        pull_RGPC = self._pull(given_RG, hidden_RGD, listed.token_MC)
        pull_RGPC = pull_RGPC / torch.where(heat_R > 0, heat_R, 1.0).view(-1, 1, 1, 1)
        last, picks = pull_RGPC.shape[2] - 1, []
        at_R = torch.zeros_like(given_RG[:, 0])
        row_R = torch.arange(len(at_R), device=at_R.device)
        for k in range(given_RG.shape[1]):
            before_R = torch.where(given_RG[:, k] == NO_TOKEN, at_R, last)
            at_R = (listed.score_MC[:, k] + pull_RGPC[row_R, k, before_R]).argmax(-1)
            picks.append(torch.stack((before_R, at_R), dim=1))
        before_RG, at_RG = torch.stack(picks, dim=1).unbind(-1)
        at_RG1 = at_RG[..., None]
        chosen_RGC = pull_RGPC.gather(2, before_RG[..., None, None].expand_as(pull_RGPC[:, :, :1]))[:, :, 0]
        weight_RGC = listed.logit_MC - listed.logit_MC[..., :1] + sure_RG.log()[..., None]  # log of their probability
        rest_RG = (1 - weight_RGC.exp().sum(-1)).clamp(min=0)
        share_RGC = (weight_RGC + chosen_RGC).exp()
        found_RG = share_RGC.gather(2, at_RG1)[..., 0] / (rest_RG + share_RGC.sum(-1))
        # 0: broken logits, or nobody asked.
        return listed.token_MC.gather(2, at_RG1)[..., 0], torch.where(sure_RG > 0, found_RG, 0.0)

    def _pull(self, given_RG: Tensor, hidden_RGD: Tensor, token_RGC: Tensor) -> Tensor:
        """What the chain adds to the logits of each candidate, behind each of the P tokens that may stand before it:
        the candidates of the column before, and what is given, [R, G, P, C]. All at once, since many small products
        take longer than some that nobody needs."""
        candidates_RGC = F.pad(token_RGC[:, :-1], (0, 0, 1, 0))
        before_RGP = torch.cat((candidates_RGC, given_RG.clamp(min=0)[..., None]), dim=-1)
        shape = (*before_RGP.shape, -1)
        inner = F.silu(self.before(before_RGP.flatten()).view(shape) + self.chain.of_state(hidden_RGD)[:, :, None])
        return inner @ self.out_VR[token_RGC].transpose(-1, -2)
