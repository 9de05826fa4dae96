"""The mask decoder's image tokens under a prompt, and how alike they are, without the maps that masks are made of.

SAM's decoder lets the tokens of the prompt and those of the image attend to each other before it scales the image's up
and reads masks off them. These image tokens tell which parts of the image belong to what was prompted; whoever wants
them alone needs neither the up-scaling, four times as wide in each direction, nor the heads behind it.
"""

import torch
from torch import Tensor

from fewlabel.sam.checks import check_prompts
from fewlabel.sam.frames import Frame
from fewlabel.sam.promptable import Embedding, PromptableSegmenter

# Tokens of the decoder's own in the order in which the families put them before the prompt's; each has some of them.
OWN_TOKENS = ("obj_score_token", "iou_token", "mask_tokens", "hq_token")
# Numbers in one chunk's image tokens, of which the transformer holds several tensors at a time. A processor is as fast
# with few of them as with many; an accelerator must be kept busy.
CHUNK_NUMBERS, ACCELERATED_NUMBERS = 2**21, 2**23
LEAST_NORM = 1e-6  # tokens below it count as alike to nothing, themselves included


def prompted_tokens(
    segmenter: PromptableSegmenter, embedding: Embedding, points: Tensor, point_labels: Tensor | None = None
) -> Tensor:
    """Image tokens after the last block of the decoder's two-way transformer; differentiable.

    Args:
        segmenter: The model, of any family.
        embedding: What its `encode` returned for B images; only the last feature map is used.
        points: `(B, P, K, 2)` xy in image pixels, the centre of column c at c + 0.5.
        point_labels: `(B, P, K)` 1 object, 0 background, -10 padding; all 1 when left out.

    Returns:
        `(B, P, h * w, C)`, row by row over the model's whole frame.

    Raises:
        ModelError: The points are not of that shape, do not belong to the embedding or lie outside the image.
    """
    last = embedding.features[-1]
    batch, channels, rows, columns = last.shape
    prompts = check_prompts(int(batch), segmenter.frame_of(embedding.size), points, point_labels)
    if prompts == 0:
        return last.new_zeros((batch, 0, rows * columns, channels))
    only = Embedding([last], embedding.size)  # the finer maps go into masks alone
    features, sparse, dense = segmenter.embed_prompts(only, prompts, points, point_labels)
    decoder = segmenter.model.mask_decoder
    own = torch.cat([getattr(decoder, name).weight for name in OWN_TOKENS if hasattr(decoder, name)])
    tokens = torch.cat((own.expand(*sparse.shape[:2], -1, -1), sparse.to(own.dtype)), 2)
    image = (features[-1] + dense)[:, None].expand(-1, sparse.shape[1], -1, -1, -1).flatten(0, 1)
    _, keys = decoder.transformer(
        point_embeddings=tokens,
        image_embeddings=image,
        image_positional_embeddings=segmenter.model.get_image_wide_positional_embeddings(),
        attention_similarity=None,
    )
    return torch.as_tensor(keys).reshape(batch, prompts, rows * columns, channels)


@torch.no_grad()
def similarity_rows(
    segmenter: PromptableSegmenter, embedding: Embedding, points: Tensor, chunk: int | None = None
) -> Tensor:
    """How alike each cell's tokens are to those of the prompted cell, one row for each one-point prompt.

    Row i is the cosine of token `anchor(i)` with every token, both under prompt i. Prompts go through the transformer
    in chunks, so that the memory depends on the chunk and not on their number.

    Args:
        segmenter: The model, of any family.
        embedding: What its `encode` returned for B images.
        points: `(B, P, 2)` xy in image pixels, each a prompt of its own.
        chunk: Prompts at a time; as many as make `CHUNK_NUMBERS`, or `ACCELERATED_NUMBERS`, when None.

    Returns:
        float32 `(B, P, h * w)` in [-1, 1] to rounding, row by row over the model's whole frame, without gradients.

    Raises:
        ModelError: The points are not of that shape, do not belong to the embedding or lie outside the image.
    """
    last = embedding.features[-1]
    _, channels, rows, columns = last.shape
    check_prompts(len(last), segmenter.frame_of(embedding.size), points[:, :, None])
    numbers = CHUNK_NUMBERS if last.device.type == "cpu" else ACCELERATED_NUMBERS
    step = chunk or max(1, numbers // (channels * rows * columns))
    found = last.new_empty((*points.shape[:2], rows * columns), dtype=torch.float32)
    cells = anchors(segmenter.frame_of(embedding.size), points, columns)
    for index in range(len(last)):
        single = Embedding([last[index : index + 1]], embedding.size)
        for start in range(0, points.shape[1], step):
            here = slice(start, start + step)
            tokens = prompted_tokens(segmenter, single, points[index : index + 1, here, None])[0]
            found[index, here] = _row(tokens, cells[index, here])
    return found


def anchors(frame: Frame, points: Tensor, side: int) -> Tensor:
    """Indices int64 `(...)` of the cells that hold points `(..., 2)` xy, in a grid of `side` cells row by row."""
    cells = frame.cells(points, side)
    return cells[..., 1] * side + cells[..., 0]


def _row(tokens: Tensor, anchor: Tensor) -> Tensor:
    """Cosines float32 `(P, n)` of tokens `(P, n, C)` with the one at each `anchor` `(P,)`."""
    with torch.autocast(tokens.device.type, enabled=False):  # which would round the products to half precision
        tokens = tokens.float()
        products = torch.einsum("pnc,pc->pn", tokens, tokens[torch.arange(len(tokens), device=tokens.device), anchor])
        lengths = torch.linalg.vector_norm(tokens, dim=-1).clamp_min(LEAST_NORM)
        return products / lengths / lengths.gather(1, anchor[:, None])
