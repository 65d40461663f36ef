"""Score all choices of a question in one row of tokens: their common context is read once.

lm-eval runs one row for each choice, and each repeats the question. Here the rows of a question become one:

    tokens       c0 c1 c2 | a0 a1 | b0 b1 b2      the common context, then a branch for each choice
    positions     0  1  2 |  3  4 |  3  4  5      each branch stands right behind the context
    b1 sees      c0 c1 c2           b0 b1         and nothing of branch a (block mask)

Prompts, token ids and metrics stay lm-eval's own. Where a question's contexts differ (WinoGrande), they share
what they begin with. What can't be scored so is left to lm-eval's own way, with a warning.
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
Wanted = Callable[[Any], bool]
Answer = tuple[float, bool]  # log-likelihood of a continuation in nats, whether it is the greedy one
Scored = tuple[Document, list[Answer]]

TOLERANCE = 1e-3  # nats: how far a choice's log-likelihood may lie from lm-eval's own
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")  # names in configs of local attention
FILLED = 0.85  # share of a batch's width that its shortest row has at least, once the batch has
ENOUGH = 256  # tokens: fewer in a forward pass leave a CPU waiting for the weights
NO_TOKEN = "<|no token|>"  # stands for EOS where a tokenizer has none; beyond its vocabulary
PADDING = -1  # branch of the tokens that fill a row up


@dataclass(frozen=True)
class Row:
    """The requests of one question as one row of tokens; all lists but the last two have an entry a token."""

    tokens: list[int]
    positions: list[int]
    branches: list[int]  # 0: the common context, from 1 on: the branch
    scored: list[list[int]]  # for each request the places whose logits predict its continuation
    targets: list[list[int]]  # for each request the token ids of its continuation


def lay_out(requests: Sequence[Encoded]) -> Row:
    """Lay the requests of one question out as a row.

    The common context is the longest common beginning of what the model reads for each request. Requests that
    read the same share a branch, so their log-likelihoods are equal to the last bit.
    """
    read = [(context + continuation)[:-1] for _, context, continuation in requests]  # the last is predicted
    shared = len(commonprefix(read))
    row = Row(read[0][:shared], list(range(shared)), [0] * shared, [], [])
    places: dict[tuple[int, ...], list[int]] = {}
    for inputs, (_, _, continuation) in zip(read, requests, strict=True):
        rest = tuple(inputs[shared:])
        if rest not in places:
            start = len(row.tokens)
            places[rest] = [*range(shared), *range(start, start + len(rest))]
            row.tokens.extend(rest)
            row.positions.extend(range(shared, len(inputs)))
            row.branches.extend([len(places)] * len(rest))
        row.scored.append(places[rest][-len(continuation) :])
        row.targets.append(continuation)
    return row


def block_mask(branches: Tensor, dtype: torch.dtype) -> Tensor:
    """Let each token see the context and its own branch, as far as they stand before it.

    Args:    branches: `(rows, tokens)`, as in `Row`; padding is a branch of its own, behind the others.
    Returns: `(rows, 1, tokens, tokens)`: 0 where a token (dim 2) sees another (dim 3), else the type's least.
    """
    same = branches[:, :, None] == branches[:, None, :]
    sees = (same | (branches == 0)[:, None, :]).tril()
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def score(model: nn.Module, rows: Sequence[Row], device: torch.device) -> list[list[Answer]]:
    """Score the requests of several rows in one forward pass: row -> request -> answer.

    The output layer runs at the scored places alone. log p is in float32 (lm-eval: in the model's type).
    """
    width = max(len(row.tokens) for row in rows)

    def padded(name: str, filling: int) -> Tensor:  # (rows, tokens)
        lists = (getattr(row, name) for row in rows)
        return torch.tensor([one + [filling] * (width - len(one)) for one in lists], device=device)

    places = torch.tensor([i * width + p for i, row in enumerate(rows) for one in row.scored for p in one])
    targets = torch.tensor([token for row in rows for one in row.targets for token in one])
    kept, which = places.unique(return_inverse=True)  # the first tokens of all choices have one place

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
    return [[(math.fsum(log for log, _ in one), all(hit for _, hit in one)) for one in row] for row in parts]


def completed(tokenizer: Any, add_bos: bool | None) -> Any:
    """Copy a tokenizer, and give the copy the tokens that lm-eval can't do without.

    Args:    add_bos: True: the copy begins every text with its BOS token.
    Raises:  ValueError: it can't do that.
    """
    own = copy.deepcopy(tokenizer)
    if own.pad_token_id is None:
        own.pad_token = own.unk_token or own.eos_token or own.bos_token
    if own.eos_token_id is None:
        own.add_special_tokens({"eos_token": NO_TOKEN})  # never read by the model
    first = [own.bos_token_id]
    if add_bos and own.bos_token_id is not None and own("a")["input_ids"][:1] != first:
        own.add_bos_token = True
    if add_bos and own("a")["input_ids"][:1] != first:
        kind = type(own).__name__
        raise ValueError(f"add_bos=True, but this {kind} has no BOS token, or puts none first; ask without")
    return own


class ChoicesLM(HFLM):
    """lm-eval's model with a choice of how the continuations of a question are scored.

    Args:    pretrained, tokenizer: left as they are; a copy of the tokenizer works (see `completed`).
             shared_context: one row a question; False: lm-eval's own way, a row a choice.
             wanted: which requests (lm-eval's `Instance`) are scored, all by default; the rest gets -inf.
             settings: of HFLM. Its `batch_size` counts rows.
    """

    def __init__(
        self, pretrained: nn.Module, tokenizer: Any, *, shared_context: bool = True,
        wanted: Wanted = lambda _: True, **settings: Any,
    ):  # fmt: skip
        own = completed(tokenizer, settings.get("add_bos_token"))
        pretrained.tie_weights = lambda: None  # lm-eval would tie what its owner has untied
        try:
            super().__init__(pretrained=pretrained, tokenizer=own, **settings)
        finally:
            del pretrained.tie_weights
        self.shared_context, self.wanted = shared_context, wanted
        self._documents: list[Document] = []  # of the requests that are being scored

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        if self.tokenizer.pad_token == NO_TOKEN:  # side by side, short prompts are padded
            self.batch_size_per_gpu = 1
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Answer]:
        chosen = [request for request in requests if self.wanted(request)]
        self._documents = [(request.task_name, request.doc_id) for request in chosen]
        answers = iter(super().loglikelihood(chosen, disable_tqdm=disable_tqdm))
        self._documents = []
        return [next(answers) if self.wanted(request) else (-math.inf, False) for request in requests]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenise as lm-eval does; where special tokens end a prompt, the continuation follows those."""
        if not hasattr(self.tokenizer, "prompt_end_ids"):
            return super()._encode_pair(context, continuation)
        ids = [self.tok_encode(text, add_special_tokens=False) for text in (context, continuation)]
        return ids[0] + self.tokenizer.prompt_end_ids, ids[1]

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        unknown = self.tokenizer.eos_token_id if self.tokenizer.eos_token == NO_TOKEN else None
        if any(unknown in context for _, context, _ in requests):
            said = f"but this {type(self.tokenizer).__name__} has neither; set one, or ask other tasks"
            raise ValueError(f"a text scored from its first token needs a BOS or EOS token before it, {said}")
        one_by_one = super()._loglikelihood_tokens
        if not (self.shared_context and self._documents):
            return one_by_one(requests, disable_tqdm, override_bs)
        numbers = defaultdict(list)  # question -> numbers of its requests
        for number, document in enumerate(self._documents):
            numbers[document].append(number)
        rows = {document: lay_out([requests[n] for n in own]) for document, own in numbers.items()}
        limit = longest_row(self.config, self.max_length)
        fitting = {document: row for document, row in rows.items() if len(row.tokens) <= limit}
        reason = f"a row would be longer than {limit} tokens"
        if fitting:
            # a row with the most branches, where mistakes would show, is compared with lm-eval's own
            typical = max(fitting, key=lambda document: max(rows[document].branches))
            own = [requests[n] for n in numbers[typical]]
            if fault := self._difference(rows[typical], own):
                fitting, reason = {}, fault
        answers: dict[int, Answer] = {}
        for document, scored in self._score_in_batches(fitting, disable_tqdm):
            answers |= zip(numbers[document], scored, strict=True)
        left = [n for n in range(len(requests)) if n not in answers]
        if left:
            said = f"{len(rows) - len(fitting)} of {len(rows)} questions are scored choice by choice as in "
            said += f"lm-eval, without sharing their context: {reason}"
            warnings.warn(said, stacklevel=2)
            answers |= zip(left, one_by_one([requests[n] for n in left], disable_tqdm), strict=True)
        return [answers[n] for n in range(len(requests))]

    def _difference(self, row: Row, requests: list[Encoded]) -> str:
        """Compare a row's last branch, where a wrong mask or position shows, with lm-eval's own answer to it.

        Types coarser than float32 may differ by more. So it is also compared with itself beside others, which
        it must not see (layers with a state, as Mamba's, do). Returns why rows can't be used, or nothing.
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
        beside, _ = score(self.model, [replace(row, tokens=tokens)], self.device)[0][last]
        is_same = abs(ours - beside) <= TOLERANCE
        return "" if is_same else f"a choice depends on the others: {ours:.4f} becomes {beside:.4f}"

    def _score_in_batches(self, rows: dict[Document, Row], quiet: bool) -> Iterator[Scored]:
        """Score rows of about the same length together, the longest first, so that memory runs out early."""
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
    """Find how many tokens a row may have: no more than the model reads, or its local attention reaches."""
    values = [getattr(config.get_text_config(), name, None) for name in WINDOWS]
    return min([max_length, *(value for value in values if isinstance(value, int) and value > 0)])
