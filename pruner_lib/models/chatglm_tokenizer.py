"""The tokenizer of ChatGLM-6B: sentencepiece, with tokens for white space, and a gap behind a prompt.

Reads `ice_text.model` and `tokenizer_config.json` of THUDM/chatglm-6b as they are now. "How?" becomes the
ids of "▁How ? [gMASK] <sop>": what follows <sop> fills the gap. Batches are padded on the left. This file
travels beside the weights of a saved model, so it needs transformers and sentencepiece alone.
"""

import re

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

LONGEST_BLANK = 80  # spaces that one token stands for
SPECIAL = {
    "bos_token": "<sop>", "eos_token": "<eop>", "end_token": "</s>", "mask_token": "[MASK]",
    "gmask_token": "[gMASK]", "pad_token": "<pad>", "unk_token": "<unk>",
}  # fmt: skip


class ChatGLMTokenizer(SentencePieceBackend):
    """Turns text into ids of the sentencepiece model.

    Raises: ValueError: the sentencepiece model is that of the first revisions, which has no special tokens
        and whose ids of text begin behind those of images.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}
    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"  # saved with this file beside it, for who has transformers alone

    def __init__(self, vocab_file: str, **kwargs):
        super().__init__(vocab_file=str(vocab_file), **SPECIAL | {"padding_side": "left"} | kwargs)
        needed = [self.bos_token, self.eos_token, self.mask_token, self.gmask_token, self.pad_token]
        pieces = self.sp_model.id_to_piece(self.sp_model.piece_to_id(needed))
        absent = [token for token, piece in zip(needed, pieces, strict=True) if token != piece]
        if absent or (images := kwargs.get("num_image_tokens")):
            wanted = "files of the current revision of THUDM/chatglm-6b, of vocab_size 130528"
            came = f"has no {', '.join(absent)}" if absent else f"comes with num_image_tokens={images}, not 0"
            raise ValueError(f"{vocab_file} {came}; wanted {wanted}")

    @property
    def prompt_end_ids(self) -> list[int]:
        """The ids of "[gMASK] <sop>", which end a prompt."""
        return self.convert_tokens_to_ids([self.gmask_token, self.bos_token])

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1=None) -> list[int]:
        """Give `prompt [gMASK] <sop>`, and for a pair `prompt [gMASK] <sop> answer <eop>`."""
        prompt = token_ids_0 + self.prompt_end_ids
        return prompt if token_ids_1 is None else prompt + token_ids_1 + [self.eos_token_id]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        text = self.sp_model.decode_pieces(tokens)
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda found: " " * int(found[1]), text)

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        text = re.sub(f" {{2,{LONGEST_BLANK}}}", lambda found: f"<|blank_{len(found[0])}|>", text)
        return super()._tokenize(text)

    def _convert_id_to_token(self, index: int) -> str:
        # the model's vocabulary is rounded up: its last ids have no piece, but can be drawn
        return super()._convert_id_to_token(index) if index < self.vocab_size else "<unk>"
