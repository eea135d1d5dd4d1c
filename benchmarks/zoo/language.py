"""Hugging Face's networks, small, from configurations; and LoRA adapters on one of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from torch import nn

from benchmarks.zoo.architecture import AnyConfig, Architecture, Example, Table, named

_VOCABULARY = 50
_TEXT: AnyConfig = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"vocab_size": _VOCABULARY, "max_position_embeddings": 32},
}
_VIT: AnyConfig = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"image_size": 32, "patch_size": 8},
}
_SEQ2SEQ: AnyConfig = {
    **{"vocab_size": _VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48},
    **{"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
_SPEECH: AnyConfig = {
    **{"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    **{"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
}
_IDS = named({"input_ids": (2, 8)}, _VOCABULARY)
_PAIR = named({"input_ids": (2, 8), "decoder_input_ids": (2, 6)}, _VOCABULARY)
_IMAGE = named({"pixel_values": (2, 3, 32, 32)}, _VOCABULARY)
_WAVE = named({"input_values": (2, 1000)}, _VOCABULARY)


def _model(network: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return partial(_make, network, config, options)


def _make(network: str, config: str, options: AnyConfig) -> nn.Module:
    made: nn.Module = getattr(transformers, network)(getattr(transformers, config)(**options))
    return made


def _text(
    family: str, network: str, config: str, example: Example = _IDS, least: float = 0.99, **more: Any
) -> Architecture:
    return Architecture(family, _model(network, config, **{**_TEXT, **more}), example, least=least)


def _with_lora() -> nn.Module:
    import peft  # noqa: PLC0415  # installed apart from transformers

    options = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    base = _make("BertForSequenceClassification", "BertConfig", _TEXT)
    adapted: nn.Module = peft.get_peft_model(base, options)
    return adapted


def _is_adapter(name: str) -> bool:
    return "lora_" in name


LANGUAGE: Table = {
    "bert": _text("BERT", "BertForSequenceClassification", "BertConfig"),
    "distilbert": Architecture(
        "DistilBERT",
        _model(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            **{"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50},
            max_position_embeddings=32,
        ),
        _IDS,
    ),
    "roberta": _text("RoBERTa, token labels", "RobertaForTokenClassification", "RobertaConfig"),
    "albert": _text("ALBERT, shared layers", "AlbertForMaskedLM", "AlbertConfig", embedding_size=16),
    "electra": _text("ELECTRA", "ElectraForPreTraining", "ElectraConfig", embedding_size=16),
    "deberta_v2": _text(
        "DeBERTa v2, relative positions",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
    ),
    "gpt2": Architecture(
        "GPT-2, with its cache",
        _model("GPT2LMHeadModel", "GPT2Config", vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4),
        _IDS,
    ),
    "gpt_neox": _text("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "opt": _text("OPT", "OPTForCausalLM", "OPTConfig", ffn_dim=48, word_embed_proj_dim=32),
    "llama": _text("Llama, grouped queries", "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "mistral": _text("Mistral", "MistralForCausalLM", "MistralConfig", num_key_value_heads=2),
    "qwen2": _text("Qwen 2", "Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=2),
    "gemma": _text(
        "Gemma, one key for all heads", "GemmaForCausalLM", "GemmaConfig", num_key_value_heads=1, head_dim=8
    ),
    "mixtral": _text(
        "Mixtral, routed experts",
        "MixtralForCausalLM",
        "MixtralConfig",
        num_key_value_heads=2,
        num_local_experts=3,
    ),
    "t5": Architecture(
        "T5",
        _model(
            "T5ForConditionalGeneration",
            "T5Config",
            **{"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        ),
        _PAIR,
    ),
    "bart": Architecture(
        "BART",
        _model("BartForConditionalGeneration", "BartConfig", **_SEQ2SEQ, max_position_embeddings=32),
        _PAIR,
    ),
    "whisper": Architecture(
        "Whisper",
        _model(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            **_SEQ2SEQ,
            **{"num_mel_bins": 16, "max_source_positions": 10, "max_target_positions": 16, "decoder_start_token_id": 1},
            **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        ),
        named({"input_features": (2, 16, 20), "decoder_input_ids": (2, 6)}, _VOCABULARY),
        least=0.98,
    ),
    "wav2vec2": Architecture("Wav2Vec 2", _model("Wav2Vec2ForCTC", "Wav2Vec2Config", **_SPEECH), _WAVE),
    "hubert": Architecture("HuBERT", _model("HubertForCTC", "HubertConfig", **_SPEECH), _WAVE),
    "vit": Architecture("ViT", _model("ViTForImageClassification", "ViTConfig", **_VIT, num_labels=10), _IMAGE),
    "convnext": Architecture(
        "ConvNeXt",
        _model(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            **{"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "num_labels": 10},
        ),
        named({"pixel_values": (2, 3, 64, 64)}, _VOCABULARY),
    ),
    "segformer": Architecture(
        "SegFormer, segmentation",
        _model(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            **{"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 2, 4]},
            decoder_hidden_size=32,
        ),
        named({"pixel_values": (2, 3, 64, 64)}, _VOCABULARY),
    ),
    "bert_lora": Architecture("LoRA adapters on BERT, sent alone", _with_lora, _IDS, sent=_is_adapter),
}
