"""Folders of tiny networks as Transformers and timm save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
NAMES = ("cat", "dog", "eel")


def vit(folder: Path, *, shards: str = "1GB", classes: tuple[str, ...] = NAMES, **processor: Any) -> nn.Module:
    """A ViT for images of 32 px with its image processor; ``shards`` is the largest size of a file."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    names = dict(enumerate(classes))
    config = ViTConfig(
        image_size=32, patch_size=8, id2label=names, label2id={name: i for i, name in names.items()}, **SIZES
    )
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder, max_shard_size=shards)
    ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **processor}).save_pretrained(folder)
    return model


def bert(folder: Path, classes: int = 3) -> nn.Module:
    """A BERT that classifies texts of a vocabulary of 20 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=classes, **SIZES)).eval()
    model.save_pretrained(folder)
    return model


WORDS = ("a", "photo", "of", "cat", "dog", "eel", "sketch", ".", "red", "fox")


def clip(folder: Path, kind: str = "clip") -> nn.Module:
    """A CLIP or SigLIP for images of 32 px with a tokenizer of whole words, and its image processor."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<unk>", "<start>", *WORDS, "<end>"))}
    text = {**SIZES, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "eos_token_id": len(vocabulary) - 1}
    towers = {"text_config": text, "vision_config": {**SIZES, "image_size": 32, "patch_size": 8}}
    if kind == "clip":
        config = transformers.CLIPConfig(projection_dim=12, **towers)
        model: Any = transformers.CLIPModel(config)
        processor: Any = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(**towers))
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=16
    ).save_pretrained(folder)
    return model
