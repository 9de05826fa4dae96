"""What the teacher takes over from the frozen SAM, and where: the guided terms of stage 1.

Two terms, each of which a recipe can turn off. *Distillation*: the teacher's prompt-free decoder learns to say what the
frozen SAM says when it is asked at the right places. It acts on the decoder's own logits, not on those of the head:
both decoders answer on one grid, while the head draws contours that are finer than SAM's cells and takes them from
exact labels. *Preservation*: where there is nothing to find, the adapted embedding stays what SAM's encoder made of it.

SAM was not made for targets of a few pixels, so it is not believed everywhere; `trust` is the rule. The terms, and the
rule, are our own design: what Scalpel-SAM (arXiv 2512.22483) distils with which weight is not public.
"""

import torch
from torch import Tensor

from fewlabel.scalpel.reference import Answer
from fewlabel.training.losses import bce


def trust(answer: Answer, supported: Tensor, truth: Tensor | None = None) -> Tensor:
    """Where SAM is to be believed: where the priors, which know nothing of SAM, say the same.

    With m SAM's mask, q the IoU that it predicts for it, d its disputed masks and u the support by the priors, a cell
    weighs ``|2m - 1|``, how sure SAM is, times

    * where SAM says target (m > 1/2): ``u q``. Without any prior, a target of SAM's does not count;
    * where it says background: ``(1 - u)(1 - d)``. All of it counts where everything is quiet, nothing where a prior
      says target, for SAM may not have been asked there or may have missed it, nor inside a mask that was set aside.

    Where the truth is known, cells in which SAM is wrong do not count: labels teach those.

    Args:
        answer: SAM's masks, their quality, and the disputed ones.
        supported: float (B, 1, h, w) in [0, 1], see `reference.support`.
        truth: float (B, 1, h, w), 1 where a cell holds target, for labelled images.

    Returns:
        float (B, 1, h, w) in [0, 1].
    """
    masks, quality, disputed = answer
    target = masks > 0.5
    agreed = torch.where(target, supported * quality, (1 - supported) * (1 - disputed))
    if truth is not None:
        agreed = torch.where(target == (truth > 0.5), agreed, 0.0)
    return (2 * masks - 1).abs() * agreed


def distillation(coarse: Tensor, answer: Answer, trusted: Tensor) -> Tensor:
    """Cross-entropy of the teacher's mask logits with SAM's soft masks, where SAM is trusted.

    Args:
        coarse: Logits (B, 1, h, w) of the teacher's prompt-free decoder.
        answer: SAM's masks.
        trusted: float (B, 1, h, w) >= 0, see `trust`.

    Returns:
        Scalar: the weighted mean over cells minus the entropy of SAM's masks, a constant, so that 0 is agreement.
    """
    entropy = torch.special.entr(answer.masks) + torch.special.entr(1 - answer.masks)
    return bce(coarse, answer.masks, trusted) - _mean(entropy, trusted)


def preservation(adapted: Tensor, frozen: Tensor, background: Tensor) -> Tensor:
    """How far adaptation has moved SAM's image embedding on background.

    Args:
        adapted: Embedding (B, C, h, w) of the adapted encoder.
        frozen: Embedding (B, C, h, w) of the frozen one.
        background: float (B, 1, h, w) in [0, 1]: how surely a cell holds no target.

    Returns:
        Scalar >= 0: the squared difference, summed over channels, averaged over cells with weight ``background``, as a
        share of the frozen embedding's mean square in each image. 0 at the start of a training, 1 where what was moved
        is as long as what was there.
    """
    frozen = frozen.float()
    moved = (adapted.float() - frozen).square().sum(1, keepdim=True)
    length = frozen.square().sum(1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    return _mean(moved / length.clamp_min(1e-12), background)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of values of the same shape; 0 where no weight is above 0."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1.0)
