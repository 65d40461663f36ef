"""The tokenizer of ChatGLM-6B: sentencepiece, with tokens for whitespace and a gap after each prompt.

Reads the current `ice_text.model` and `tokenizer_config.json` of THUDM/chatglm-6b. "How?" becomes the ids of
"▁How ? [gMASK] <sop>", and what follows <sop> fills the gap. Batches are padded on the left. This file is
saved with a model, so it imports only transformers and sentencepiece.
"""

import re

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

LONGEST_BLANK = 80  # most spaces that one token can represent
SPECIAL = {
    "bos_token": "<sop>", "eos_token": "<eop>", "end_token": "</s>", "mask_token": "[MASK]",
    "gmask_token": "[gMASK]", "pad_token": "<pad>", "unk_token": "<unk>",
}  # fmt: skip


class ChatGLMTokenizer(SentencePieceBackend):
    """Converts text to ids of the sentencepiece model.

    Raises: ValueError: the sentencepiece model is from an early revision, which has no special tokens and
        whose text ids start after image ids.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}
    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"  # saves this file too, so that transformers alone can load the tokenizer

    def __init__(self, vocab_file: str, **kwargs):
        super().__init__(vocab_file=str(vocab_file), **SPECIAL | {"padding_side": "left"} | kwargs)
        needed = [self.bos_token, self.eos_token, self.mask_token, self.gmask_token, self.pad_token]
        pieces = self.sp_model.id_to_piece(self.sp_model.piece_to_id(needed))
        missing = [token for token, piece in zip(needed, pieces, strict=True) if token != piece]
        if missing or (images := kwargs.get("num_image_tokens")):
            fault = f"has no {', '.join(missing)}" if missing else f"has num_image_tokens={images}, not 0"
            expected = "files of the current revision of THUDM/chatglm-6b, with vocab_size 130528"
            raise ValueError(f"{vocab_file} {fault}; expected {expected}")

    @property
    def prompt_end_ids(self) -> list[int]:
        """The ids of "[gMASK] <sop>", which end a prompt."""
        return self.convert_tokens_to_ids([self.gmask_token, self.bos_token])

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1=None) -> list[int]:
        """Return `prompt [gMASK] <sop>`, or for a pair `prompt [gMASK] <sop> answer <eop>`."""
        prompt = token_ids_0 + self.prompt_end_ids
        return prompt if token_ids_1 is None else prompt + token_ids_1 + [self.eos_token_id]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        text = self.sp_model.decode_pieces(tokens)
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda match: " " * int(match[1]), text)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(f" {{2,{LONGEST_BLANK}}}", lambda match: f"<|blank_{len(match[0])}|>", text)
        return super()._tokenize(text)

    def _convert_id_to_token(self, index: int) -> str:
        # the model's vocabulary is rounded up: its last ids can be sampled but have no piece
        return super()._convert_id_to_token(index) if index < self.vocab_size else "<unk>"
