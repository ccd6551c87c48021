"""From logits to tokens to text: common random numbers for sampling, and where an answer ends.

Legend: M rows of a batch, P prompts, T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eggroll_rl.config import SamplingConfig
from eggroll_rl.es.parameters import parameter_id
from eggroll_rl.es.philox import key_of, philox4x32
from eggroll_rl.es.rollout import Completion

AHEAD = 64  # positions whose random numbers are drawn at once
TEXTS = 2**14  # tokens' texts that are remembered


def uniform(seed: int, stream: str, epoch: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Numbers in [0, 1), fp32, one for each element of the broadcast integer tensors ``rows`` and ``columns``.

    ``stream`` names the purpose, ``epoch`` the generation, rows the prompts, columns the positions; the integers are
    those of ``eggroll_rl.es.noise``.
    """
    purpose, time = (torch.tensor(value, device=rows.device) for value in (parameter_id(stream) << 1, epoch))
    return (philox4x32((columns.long(), rows.long(), purpose, time), key_of(seed))[0] >> 8).float() * 2.0**-24


class Sampler:
    """Picks the next token of every row.

    With a temperature, the random number is a function of (seed, generation, prompt, position) alone: all members of a
    population share it, and neither the order nor the number of rows in a batch matters.

    Args:
        prompts: P; the rows' prompts are below it.
    """

    def __init__(self, sampling: SamplingConfig, seed: int, generation: int, prompts: int):
        self.sampling, self.seed, self.generation, self.prompts = sampling, seed, generation, prompts
        self._drawn = lru_cache(1)(self._draw)

    def _draw(self, stretch: int, device: torch.device) -> Tensor:
        """The random numbers [P, AHEAD] of a stretch of positions."""
        prompt_P1, position_T = torch.arange(self.prompts, device=device)[:, None], torch.arange(AHEAD, device=device)
        return uniform(self.seed, "sampling", self.generation, prompt_P1, position_T + stretch * AHEAD)

    def __call__(self, logits_MV: Tensor, seen_MT: Tensor, prompt_M: Tensor, position: int) -> Tensor:
        """Tokens [M], given those that each row has seen, prompt and answer."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1:
            logits_MV = penalised(logits_MV.float(), seen_MT, sampling.repetition_penalty)
        if sampling.temperature == 0:
            return greedy(logits_MV)
        probabilities_MV = likely(logits_MV.float() / sampling.temperature, sampling)
        cumulative_MV = probabilities_MV.cumsum(-1)
        u_M = self._drawn(position // AHEAD, prompt_M.device)[prompt_M, position % AHEAD]
        token_M = torch.searchsorted(cumulative_MV, (u_M * cumulative_MV[:, -1])[:, None], right=True)[:, 0]
        return token_M.clamp_max(logits_MV.shape[1] - 1)


def penalised(logits_MV: Tensor, seen_MT: Tensor, penalty: float) -> Tensor:
    """Logits by which what was seen is less likely again (CTRL, arXiv 1909.05858)."""
    seen_logits_MT = logits_MV.gather(1, seen_MT)
    less_MT = torch.where(seen_logits_MT < 0, seen_logits_MT * penalty, seen_logits_MT / penalty)
    return logits_MV.scatter(1, seen_MT, less_MT)


def likely(logits_MV: Tensor, sampling: SamplingConfig) -> Tensor:
    """Probabilities in proportion, 0 for tokens that ``top_k``, ``top_p`` and ``min_p`` leave out."""
    if sampling.top_k:
        least_M1 = logits_MV.topk(min(sampling.top_k, logits_MV.shape[1])).values[:, -1:]
        logits_MV = logits_MV.masked_fill(logits_MV < least_M1, -math.inf)
    probabilities_MV = torch.softmax(logits_MV, dim=-1)
    if sampling.top_p < 1:
        sorted_MV, order_MV = probabilities_MV.sort(dim=-1, descending=True)
        outside_MV = sorted_MV.cumsum(-1) - sorted_MV >= sampling.top_p
        probabilities_MV = probabilities_MV.scatter(1, order_MV, sorted_MV.masked_fill(outside_MV, 0.0))
    if sampling.min_p:
        outside_MV = probabilities_MV < sampling.min_p * probabilities_MV.amax(-1, keepdim=True)
        probabilities_MV = probabilities_MV.masked_fill(outside_MV, 0.0)
    return probabilities_MV


def greedy(logits_MV: Tensor) -> Tensor:
    """The first of the largest logits of each row, int64 [M]; torch's ``argmax`` over a long row is slow on a CPU."""
    M, V = logits_MV.shape
    wide = math.gcd(V, 1024)
    logits_MCW = logits_MV.view(M, -1, wide)
    chunk_M = logits_MCW.amax(-1).argmax(-1)
    return chunk_M * wide + logits_MCW[torch.arange(M, device=chunk_M.device), chunk_M].argmax(-1)


def texts_in_context(tokenizer: PreTrainedTokenizerBase, tokens: range) -> list[str | None]:
    """What each token adds to a text before it; None where it changes that text."""
    before = tokenizer.encode("a", add_special_tokens=False)
    text = str(tokenizer.decode(before))
    after = tokenizer.batch_decode([[*before, token] for token in tokens])
    return [whole.removeprefix(text) if whole.startswith(text) else None for whole in after]


def completing(texts: Sequence[str | None], stop: Sequence[str]) -> list[int]:
    """The tokens, given what each adds to a text, that can be the last of a stop string: those that hold one or begin
    with the end of one, and those that are a part of a character or whose text is not known."""
    ends = tuple(string[first:] for string in stop for first in range(len(string)))
    return [
        token
        for token, text in enumerate(texts)
        if text is None or "\ufffd" in text or text.startswith(ends) or any(string in text for string in stop)
    ]


class Ending(Protocol):
    """Knows where an answer ends."""

    def reached(self, tokens_MT: Tensor) -> Tensor:
        """Whether each row of tokens generated so far ends with its last token, bool [M]."""
        ...

    def completion(self, token_ids: Sequence[int]) -> Completion:
        """The answer in the tokens generated."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same, for tokens on this device."""
        ...


class Endings(Ending):
    """At an end token, or right after a stop string.

    Args:
        tokenizer: whose text the stop strings are in.
        vocabulary: V.
        end_ids: the end tokens.
        stop: the stop strings.
        keeps_end: whether an answer's tokens include its end token, for who learns from all that was sampled.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        end_ids: Sequence[int],
        stop: Sequence[str],
        keeps_end: bool = False,
    ):
        self.tokenizer, self.stop, self.keeps_end = tokenizer, tuple(stop), keeps_end
        special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends = {*end_ids, *(special[text] for text in self.stop if text in special)}
        self.end_ids = frozenset(end for end in ends if end < vocabulary)  # a tokenizer may know more than its model
        self.is_end_V = torch.zeros(vocabulary, dtype=torch.bool)
        self.is_end_V[list(self.end_ids)] = True
        self.may_stop_V = torch.zeros(vocabulary, dtype=torch.bool)
        if self.stop:
            texts = texts_in_context(tokenizer, range(min(vocabulary, len(tokenizer))))
            self.may_stop_V[completing(texts, self.stop)] = True
        self.tail = 8 + max((len(text.encode()) for text in self.stop), default=0)  # tokens that can hold a stop string
        self._text = lru_cache(TEXTS)(partial(_text, tokenizer))  # many rows say the same

    def to(self, device: torch.device) -> Self:
        self.is_end_V, self.may_stop_V = self.is_end_V.to(device), self.may_stop_V.to(device)
        return self

    def reached(self, tokens_MT: Tensor) -> Tensor:
        last_M = tokens_MT[:, -1]
        reached_M = self.is_end_V[last_M]
        row_R = (self.may_stop_V[last_M] & ~reached_M).nonzero()[:, 0]
        if len(row_R):
            tails = map(self._text, map(tuple, tokens_MT[row_R, -self.tail :].tolist()))  # on a GPU one wait for all
            stops = [any(text in tail for text in self.stop) for tail in tails]
            reached_M[row_R] = torch.tensor(stops, device=reached_M.device)
        return reached_M

    def completion(self, token_ids: Sequence[int]) -> Completion:
        """The answer in ``token_ids``: what comes before the end token, cut after the first stop string."""
        ids = tuple(token_ids)
        ended = next((index for index, token in enumerate(ids) if token in self.end_ids), None)
        text = self._text(ids[:ended], skip_special_tokens=True)
        cuts = [text.index(stop) + len(stop) for stop in self.stop if stop in text]
        kept = ended + 1 if self.keeps_end and ended is not None else ended
        return Completion(text[: min(cuts)] if cuts else text, ids[:kept], ended is not None or bool(cuts))


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: tuple[int, ...], skip_special_tokens: bool = False) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
