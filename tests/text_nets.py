# SPDX-License-Identifier: BSD-3-Clause
"""Small networks of texts: one of letters that counts what it reads, and random transformers."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import nn

from skpool.backbones import Backbone, TextRecipe

CORPUS = [
    "the frozen features of a network are computed once",
    "a grid search over poolings reads them again and again",
    "every text has a key, and every key has a vector",
    "shuffles and folds do not matter",
]
# Unequal lengths, an empty one, characters outside of the corpus, and one twice.
TEXTS = [
    "frozen features",
    "a network",
    "",
    "every text has a key, and every key has a vector of its own in the store of the session",
    "Größe \N{SNOWMAN} 你好",
    "the folds do not matter, nor do shuffles",
    "again",
    "a network",
]


class LetterNet(nn.Module):
    """Letters, each with what all letters of its text have in common, through two blocks."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.embed = nn.Embedding(256, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.norm = nn.LayerNorm(6)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def forward(self, ids, mask):
        tokens = self.embed(ids)
        mask = mask[..., None]
        mean = tokens.where(mask, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        tokens = tokens + mean
        for block in self.blocks:
            tokens = block(tokens).tanh()
        return self.norm(tokens)


class CountingLetterNet(LetterNet):
    """Appends one byte per text to a file, which all processes share."""

    def __init__(self, path: Path, seed: int = 0):
        super().__init__(seed)
        self.path = str(path)

    def forward(self, ids, mask):
        # The letter by which the width is found is not a text of the user's.
        n = len(ids) if ids.shape[1] > 1 else int((ids != ord("a")).sum())
        with open(self.path, "ab", buffering=0) as file:
            os.write(file.fileno(), b"x" * n)
        return super().forward(ids, mask)


def letter_backbone(seed: int = 0, **recipe) -> Backbone:
    """A small frozen backbone whose tokens are the bytes of a text."""
    return Backbone.from_module(
        LetterNet(seed),
        recipe=TextRecipe(**recipe),
        tokenizer=str.encode,
        layer_paths=["blocks.0", "blocks.1"],
    )


def counting_letters(path: Path, **recipe) -> Backbone:
    """The same, which counts the texts in a file."""
    return Backbone.from_module(
        CountingLetterNet(path), recipe=TextRecipe(**recipe), tokenizer=str.encode
    )


# Random transformers with tokenizers of their own, written by the real libraries.

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 128,
}
ENCODERS = ("bert", "roberta", "distilbert", "mpnet", "modernbert", "t5")
DECODERS = ("llama", "gpt2")


def _word_pieces():
    """As BERT: [CLS] text [SEP], lower case, whole words and letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = sorted({word for line in CORPUS for word in line.replace(",", "").split()})
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", *letters, *(f"##{x}" for x in letters)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return tokenizer, {**names, "unk_token": "[UNK]"}


def _byte_pairs(around: str, special: list[str], names: dict[str, str]):
    """As GPT-2 and what follows it: merged bytes, and special tokens around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in special if token in around]
    if ids:
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return tokenizer, names


def make_tokenizer(kind: str):
    """A tokenizer in the manner of an architecture; that of decoders has no padding token."""
    import transformers

    if kind == "roberta":
        special = ["<s>", "<pad>", "</s>"]
        names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>"}
        parts = _byte_pairs("<s> $A </s>", special, {**names, "eos_token": "</s>"})
    elif kind == "t5":
        names = {"pad_token": "<pad>", "eos_token": "</s>"}
        parts = _byte_pairs("$A </s>", ["<pad>", "</s>"], names)
    elif kind == "llama":
        names = {"bos_token": "<s>", "eos_token": "</s>"}
        parts = _byte_pairs("<s> $A", ["<s>", "</s>"], names)
    elif kind == "gpt2":
        end = "<|endoftext|>"
        parts = _byte_pairs("$A", [end], {"bos_token": end, "eos_token": end})
    else:
        parts = _word_pieces()
    tokenizer, names = parts
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_model(kind: str, vocab_size: int):
    """A transformer with random weights that are far from those of a fresh norm."""
    import transformers as t

    options = {**SMALL, "vocab_size": vocab_size}
    config, model = {
        "bert": (t.BertConfig, t.BertModel),
        "roberta": (t.RobertaConfig, t.RobertaModel),
        "distilbert": (t.DistilBertConfig, t.DistilBertModel),
        "mpnet": (t.MPNetConfig, t.MPNetModel),
        "modernbert": (t.ModernBertConfig, t.ModernBertModel),
        "llama": (t.LlamaConfig, t.LlamaModel),
        "gpt2": (t.GPT2Config, t.GPT2Model),
        "t5": (t.T5Config, t.T5EncoderModel),
    }[kind]
    if kind == "t5":
        options = {"vocab_size": vocab_size, "d_model": 16, "d_kv": 8, "d_ff": 24}
        options |= {"num_layers": 3, "num_heads": 2, "pad_token_id": 0}
    if kind == "distilbert":
        options |= {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
    if kind == "modernbert":
        options |= {"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0}
    if kind == "llama":
        options |= {"num_key_value_heads": 1, "pad_token_id": None}
    torch.manual_seed(0)
    module = model(config(**options)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def save_text_model(kind: str, directory: Path):
    """Write model and tokenizer into a directory, and return both."""
    tokenizer = make_tokenizer(kind)
    model = make_model(kind, len(tokenizer))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


@cache
def shared_text_model(kind: str) -> str:
    """Name of a small transformer on disk, for as long as this process lives."""
    directory = Path(tempfile.mkdtemp(prefix=f"skpool-{kind}-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    save_text_model(kind, directory)
    return f"hf:{directory}"
