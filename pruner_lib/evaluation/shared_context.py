"""Score all choices of a question in one row of tokens, so that their common context is read once.

lm-eval runs one row per choice, and each repeats the question. Here the rows of a question become one:

    tokens       c0 c1 c2 | a0 a1 | b0 b1 b2      the common context, then a branch for each choice
    positions     0  1  2 |  3  4 |  3  4  5      each branch continues directly from the context
    b1 sees      c0 c1 c2           b0 b1         and nothing of branch a (block mask)

Prompts, token ids and metrics are lm-eval's own. If a question's contexts differ (WinoGrande), they share
their common prefix. Questions that can't be scored this way are scored as in lm-eval, with a warning.
"""

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from os.path import commonprefix
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from tqdm.auto import tqdm

Encoded = tuple[tuple[str, str], list[int], list[int]]  # texts, ids of the context, ids of the continuation
Document = tuple[str, int]  # task and number of a question
Answer = tuple[float, bool]  # log-likelihood of a continuation in nats, whether it is the greedy one

TOLERANCE = 1e-3  # nats: largest difference of a choice's log-likelihood from lm-eval's
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")  # config keys of local attention
FILLED = 0.85  # smallest ratio of a row's length to the longest in its batch, once the batch has
ENOUGH = 256  # tokens: with fewer in a forward pass, a CPU waits for the weights
NO_TOKEN = "<|no token|>"  # replaces a missing EOS token; its id is outside the vocabulary
PADDING = -1  # branch of padding tokens


@dataclass(frozen=True)
class Row:
    """The requests of one question as one row; the first three lists have one entry per token."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]  # 0 for the common context, from 1 for the branches
    scored: list[list[int]]  # for each request, the indices whose logits predict its continuation
    targets: list[list[int]]  # for each request, the token ids of its continuation


def lay_out(requests: Sequence[Encoded]) -> Row:
    """Arrange the requests of one question as a row.

    The common context is the longest common prefix of all requests' inputs. Requests with the same input
    share a branch, so their log-likelihoods are equal to the last bit.
    """
    inputs = [(context + continuation)[:-1] for _, context, continuation in requests]  # the last is predicted
    shared = len(commonprefix(inputs))
    row = Row(inputs[0][:shared], list(range(shared)), [0] * shared, [], [])
    branches: dict[tuple[int, ...], list[int]] = {}
    for ids, (_, _, continuation) in zip(inputs, requests, strict=True):
        rest = tuple(ids[shared:])
        if rest not in branches:
            start = len(row.tokens)
            branches[rest] = [*range(shared), *range(start, start + len(rest))]
            row.tokens.extend(rest)
            row.positions.extend(range(shared, len(ids)))
            row.branches.extend([len(branches)] * len(rest))
        row.scored.append(branches[rest][-len(continuation) :])
        row.targets.append(continuation)
    return row


def block_mask(branches: Tensor, dtype: torch.dtype) -> Tensor:
    """Let each token see the earlier tokens of the context and of its own branch.

    Args:    branches: `(rows, tokens)`, as in `Row`; padding is a separate branch, after the others.
    Returns: `(rows, 1, tokens, tokens)`: 0 if a token (dim 2) sees another (dim 3), else the dtype's minimum.
    """
    same = branches[:, :, None] == branches[:, None, :]
    sees = (same | (branches == 0)[:, None, :]).tril()
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def score(model: nn.Module, rows: Sequence[Row], device: torch.device) -> list[list[Answer]]:
    """Score the requests of several rows in one forward pass: row -> request -> answer.

    The output layer runs only at the scored indices. log p is in float32 (lm-eval: in the model's dtype).
    """
    width = max(len(row.tokens) for row in rows)

    def padded(name: str, filling: int) -> Tensor:  # (rows, tokens)
        lists = (getattr(row, name) for row in rows)
        return torch.tensor([values + [filling] * (width - len(values)) for values in lists], device=device)

    places = torch.tensor([i * width + p for i, row in enumerate(rows) for part in row.scored for p in part])
    targets = torch.tensor([token for row in rows for part in row.targets for token in part])
    kept, which = places.unique(return_inverse=True)  # the first tokens of all choices share an index

    def select(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = inputs[0]  # (rows, tokens, hidden)
        return (hidden.flatten(0, 1)[kept.to(hidden.device)][None], *inputs[1:])

    mask = block_mask(padded("branches", PADDING), model.dtype)
    inputs = {"input_ids": padded("tokens", 0), "position_ids": padded("positions", 0)}
    with model.get_output_embeddings().register_forward_pre_hook(select):
        logits = model(**inputs, attention_mask=mask, use_cache=False).logits[0].float()  # (kept, vocabulary)
    which, targets = which.to(logits.device), targets.to(logits.device)
    logs = (logits[which, targets] - logits.logsumexp(-1)[which]).tolist()
    greedy = (logits.argmax(-1)[which] == targets).tolist()
    values = iter(zip(logs, greedy, strict=True))
    parts = [[list(islice(values, len(target))) for target in row.targets] for row in rows]
    return [[(math.fsum(log for log, _ in p), all(hit for _, hit in p)) for p in row] for row in parts]


def completed(tokenizer: Any, add_bos: bool | None) -> Any:
    """Copy a tokenizer and add the special tokens that lm-eval needs.

    Args:    add_bos: True: the copy puts its BOS token before every text.
    Raises:  ValueError: the tokenizer can't do that.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token or tokenizer.bos_token
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": NO_TOKEN})  # never given to the model
    first = [tokenizer.bos_token_id]
    if add_bos and tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] != first:
        tokenizer.add_bos_token = True
    if add_bos and tokenizer("a")["input_ids"][:1] != first:
        kind = type(tokenizer).__name__
        raise ValueError(f"add_bos=True, but this {kind} has no BOS token, or puts none first; use False")
    return tokenizer


class ChoicesLM(HFLM):
    """lm-eval's model, which can score the choices of a question in one row.

    Args:    pretrained, tokenizer: not changed; a copy of the tokenizer is used (see `completed`).
             shared_context: one row per question; False: one row per choice, as in lm-eval.
             wanted: selects the requests (lm-eval's `Instance`) to score, by default all; others get -inf.
             settings: of HFLM. Its `batch_size` counts rows.
    """

    def __init__(
        self, pretrained: nn.Module, tokenizer: Any, *, shared_context: bool = True,
        wanted: Callable[[Any], bool] = lambda _: True, **settings: Any,
    ):  # fmt: skip
        tokenizer = completed(tokenizer, settings.get("add_bos_token"))
        pretrained.tie_weights = lambda: None  # otherwise lm-eval would tie weights that were untied
        try:
            super().__init__(pretrained=pretrained, tokenizer=tokenizer, **settings)
        finally:
            del pretrained.tie_weights
        self.shared_context, self.wanted = shared_context, wanted
        self._documents: list[Document] = []  # of the requests that are being scored

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        if self.tokenizer.pad_token == NO_TOKEN:  # a larger batch would need padding
            self.batch_size_per_gpu = 1
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        chosen = [request for request in requests if self.wanted(request)]
        self._documents = [(request.task_name, request.doc_id) for request in chosen]
        answers = iter(super().loglikelihood(chosen, disable_tqdm=disable_tqdm))
        self._documents = []
        return [next(answers) if self.wanted(request) else (-math.inf, False) for request in requests]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenise as lm-eval does; if special tokens end a prompt, the continuation follows them."""
        if not hasattr(self.tokenizer, "prompt_end_ids"):
            return super()._encode_pair(context, continuation)
        ids = [self.tok_encode(text, add_special_tokens=False) for text in (context, continuation)]
        return ids[0] + self.tokenizer.prompt_end_ids, ids[1]

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        unknown = self.tokenizer.eos_token_id if self.tokenizer.eos_token == NO_TOKEN else None
        if any(unknown in context for _, context, _ in requests):
            fault = f"but this {type(self.tokenizer).__name__} has neither; set one, or use other tasks"
            raise ValueError(f"scoring a text's first token needs a BOS or EOS token before it, {fault}")
        one_by_one = super()._loglikelihood_tokens
        if not (self.shared_context and self._documents):
            return one_by_one(requests, disable_tqdm, override_bs)
        numbers = defaultdict(list)  # question -> numbers of its requests
        for number, document in enumerate(self._documents):
            numbers[document].append(number)
        rows = {document: lay_out([requests[n] for n in group]) for document, group in numbers.items()}
        limit = longest_row(self.config, self.max_length)
        fitting = {document: row for document, row in rows.items() if len(row.tokens) <= limit}
        reason = f"a row would be longer than {limit} tokens"
        if fitting:
            # compare a row with the most branches, which would reveal faults, with lm-eval's scores
            example = max(fitting, key=lambda document: max(rows[document].branches))
            if fault := self._difference(rows[example], [requests[n] for n in numbers[example]]):
                fitting, reason = {}, fault
        answers: dict[int, Answer] = {}
        for document, scores in self._score_in_batches(fitting, disable_tqdm):
            answers |= zip(numbers[document], scores, strict=True)
        remaining = [n for n in range(len(requests)) if n not in answers]
        if remaining:
            count = f"{len(rows) - len(fitting)} of {len(rows)} questions"
            message = f"{count} are scored choice by choice as in lm-eval, without sharing their context"
            warnings.warn(f"{message}: {reason}", stacklevel=2)
            answers |= zip(remaining, one_by_one([requests[n] for n in remaining], disable_tqdm), strict=True)
        return [answers[n] for n in range(len(requests))]

    def _difference(self, row: Row, requests: list[Encoded]) -> str:
        """Return why rows can't be used, or "": compare a row's last branch with lm-eval's score of it.

        A wrong mask or position changes this score most. Dtypes below float32 need a larger tolerance, so the
        score must also stay the same when other branches change (with a state, as in Mamba, it would not).
        """
        last = max(range(len(requests)), key=lambda request: row.scored[request][-1])
        ((theirs, _),) = super()._loglikelihood_tokens([requests[last]], disable_tqdm=True)
        try:
            ours, _ = score(self.model, [row], self.device)[0][last]
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
            if should_reduce_batch_size(error):
                raise
            message = str(error).partition("\n")[0][:200]
            return f"the model takes no block mask and positions ({type(error).__name__}: {message})"
        rounding = 8 * torch.finfo(self.model.dtype).eps * max(1, abs(theirs))
        if not abs(ours - theirs) <= max(TOLERANCE, rounding):
            return f"a log-likelihood would be {ours:.4f} instead of {theirs:.4f}"
        others = range(1, row.branches[row.scored[last][-1]])
        pairs = zip(row.tokens, row.branches, strict=True)
        tokens = [(token + (branch in others)) % self.vocab_size for token, branch in pairs]
        changed, _ = score(self.model, [replace(row, tokens=tokens)], self.device)[0][last]
        is_same = abs(ours - changed) <= TOLERANCE
        return "" if is_same else f"a choice depends on the others: {ours:.4f} becomes {changed:.4f}"

    def _score_in_batches(self, rows: dict[Document, Row], quiet: bool) -> Iterator[tuple]:
        """Yield questions with their answers; rows of similar length share a batch, the longest first."""
        batches: list[list[Document]] = []
        longest = 0
        for document in sorted(rows, key=lambda document: len(rows[document].tokens), reverse=True):
            length = len(rows[document].tokens)
            is_short = length < FILLED * longest and longest * len(batches[-1]) >= ENOUGH
            if is_short or not batches or len(batches[-1]) == self.batch_size:
                batches.append([])
                longest = length
            batches[-1].append(document)
        with tqdm(total=len(rows), desc="zero-shot", unit="question", disable=quiet) as bar:
            for batch in batches:
                yield from zip(batch, score(self.model, [rows[d] for d in batch], self.device), strict=True)
                bar.update(len(batch))


def longest_row(config: Any, max_length: int) -> int:
    """Return the largest number of tokens in a row, limited by the model and its local attention."""
    values = [getattr(config.get_text_config(), name, None) for name in WINDOWS]
    return min([max_length, *(value for value in values if isinstance(value, int) and value > 0)])
