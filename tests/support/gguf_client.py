"""llama.cpp itself, its server in this process: the client that a GGUF file is written for."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from torch import nn
from xllamacpp import CommonParams, Server, ggml_type


class LlamaCpp:
    """Loads a GGUF file; keys and values are kept in float32, so that only the order of sums differs.

    Raises: RuntimeError: llama.cpp refuses the file.
    """

    def __init__(self, path: Path):
        settings = CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel, settings.verbosity = 64, 1, -1
        settings.cpuparams.n_threads, settings.warmup = 1, False
        settings.cache_type_k = settings.cache_type_v = ggml_type.GGML_TYPE_F32
        self.server = Server(settings)
        self.tokens("")  # it answers; one thrown away before its loop begins is waited for for ever

    def greedy(self, prompt: list[int], n: int) -> tuple[list[int], list[float]]:
        """The n likeliest next tokens, one after the other, and their log-probabilities."""
        wanted = {"prompt": prompt, "max_tokens": n, "temperature": 0, "logprobs": 1, "ignore_eos": True}
        steps = self.server.handle_completions(wanted)["choices"][0]["logprobs"]["content"]
        return [step["id"] for step in steps], [step["logprob"] for step in steps]

    def tokens(self, text: str) -> list[int]:
        asked = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = Request(f"{self.server.listening_address}/tokenize", asked)
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as answer:
            return json.load(answer)["tokens"]

    def disagreement(self, model: nn.Module, prompt: list[int], n: int = 8) -> float:
        """The largest difference of a log-probability; infinite where greedy tokens differ."""
        tokens, logprobs = self.greedy(prompt, n)
        with torch.no_grad():
            ours = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        if len(tokens) != n or ours.argmax(-1).tolist() != tokens:
            return float("inf")
        return (ours[torch.arange(n), tokens] - torch.tensor(logprobs)).abs().max().item()
