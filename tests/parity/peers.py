"""The golden models' weights inside other people's classes: diffusers, ComfyUI, transformers.

Only keys are renamed, and loading is strict, so a peer holds exactly our numbers. Peers are shared between tests:
leave them as you found them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import comfy.ops
import torch
from comfy.ldm.ace.ace_step15 import AceStepConditionGenerationModel
from diffusers import AceStepPipeline, AceStepTransformer1DModel, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ace_step import modeling_ace_step
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import Qwen2TokenizerFast, Qwen3Model
from transformers import Qwen3Config as TheirQwen3Config

import golden_models
import vocabulary
from acestep_pack.acestep_core.models.acestep import AceStep
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.models.layers import AttentionShape, Build
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config
from acestep_pack.acestep_core.pipeline.run import Branch, Computed, Run
from acestep_pack.acestep_core.song.tokens import Ids
from acestep_pack.nodes.host.memory import with_attention

SIZES = ("2b", "xl")
# Largest error of one forward of one part, as a part of the output's largest magnitude.
ONE_PART = 1e-5

DIFFUSERS_NAMES = {
    ".q_proj.": ".to_q.",
    ".k_proj.": ".to_k.",
    ".v_proj.": ".to_v.",
    ".o_proj.": ".to_out.0.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
    "proj_in.1.": "proj_in_conv.",
    "decoder.proj_out.1.": "decoder.proj_out_conv.",
}
N_TOKENS = 151_669

TEXT_ENCODER = Qwen3Config(
    AttentionShape(width=48, mlp_width=96, n_heads=4, n_kv_heads=2, head_dim=16, window=None),
    n_layers=3,
    n_tokens=N_TOKENS,
)


# diffusers.


@functools.cache
def diffusers_transformer(size: str) -> AceStepTransformer1DModel:
    config = golden_models.config(size)
    sizes = _sizes(config.decoder, num_hidden_layers=len(config.windowed_layers), is_turbo=True)
    model = AceStepTransformer1DModel(**sizes, encoder_hidden_size=config.encoder.width)
    return _loaded(model, _diffusers_part(size, "decoder."))


@functools.cache
def diffusers_condition_encoder(size: str) -> modeling_ace_step.AceStepConditionEncoder:
    """Return diffusers' encoder as it is: without XL's class token. It knows no silence but zeros."""
    config = golden_models.config(size)
    model = modeling_ace_step.AceStepConditionEncoder(
        **_sizes(config.encoder),
        text_hidden_dim=config.text_width,
        num_lyric_encoder_hidden_layers=config.n_lyric_layers,
        num_timbre_encoder_hidden_layers=config.n_timbre_layers,
    )
    state = _diffusers_part(size, "encoder.")
    state["null_condition_emb"] = _weights(size)["null_condition_emb"]
    return _loaded(model, state | {"silence_latent": model.silence_latent})


def official_condition_encoder(size: str) -> modeling_ace_step.AceStepConditionEncoder:
    """Return a copy of diffusers' encoder that reads XL's timbre as the official code does."""
    model = diffusers_condition_encoder.__wrapped__(size)
    if size == "xl":
        timbre = model.timbre_encoder
        timbre.embed_tokens = BehindToken(timbre.embed_tokens, timbre.special_token)
    return model


class BehindToken(nn.Module):
    """An embedding with one learned token in front of its sequence."""

    def __init__(self, embed: nn.Module, token: Tensor) -> None:
        super().__init__()
        self.embed, self.token = embed, token

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(len(x), 1, -1), self.embed(x)), dim=1)


@functools.cache
def diffusers_tokenizer(size: str) -> modeling_ace_step.AceStepAudioTokenizer:
    config = golden_models.config(size)
    depth = {"num_attention_pooler_hidden_layers": config.n_pooler_layers}
    model = modeling_ace_step.AceStepAudioTokenizer(**_sizes(config.encoder), **depth, fsq_dim=config.encoder.width)
    return _loaded(model, _diffusers_part(size, "tokenizer."))


@functools.cache
def diffusers_detokenizer(size: str) -> modeling_ace_step.AceStepAudioTokenDetokenizer:
    config = golden_models.config(size)
    depth = {"num_attention_pooler_hidden_layers": config.n_pooler_layers}
    model = modeling_ace_step.AceStepAudioTokenDetokenizer(**_sizes(config.encoder), **depth)
    return _loaded(model, _diffusers_part(size, "detokenizer."))


def _diffusers_part(size: str, prefix: str) -> dict[str, Tensor]:
    part = {}
    for name, tensor in _weights(size).items():
        if name.startswith(prefix):
            for ours, theirs in DIFFUSERS_NAMES.items():
                name = name.replace(ours, theirs)
            part[name.removeprefix(prefix)] = tensor
    return part


@functools.cache
def _weights(size: str) -> dict[str, Tensor]:
    return golden_models.weights(size)


def _sizes(shape: AttentionShape, **more: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
    }
    return sizes | more


# ComfyUI.


@functools.cache
def comfyui_model(size: str) -> AceStepConditionGenerationModel:
    """Return ComfyUI's native model: DiT, condition encoder, tokenizer and detokenizer."""
    config = golden_models.config(size)
    decoder, encoder = config.decoder, config.encoder
    model = AceStepConditionGenerationModel(
        hidden_size=decoder.width,
        intermediate_size=decoder.mlp_width,
        num_heads=decoder.n_heads,
        num_kv_heads=decoder.n_kv_heads,
        head_dim=decoder.head_dim,
        num_dit_layers=len(config.windowed_layers),
        text_hidden_dim=config.text_width,
        num_lyric_layers=config.n_lyric_layers,
        num_timbre_layers=config.n_timbre_layers,
        num_tokenizer_layers=config.n_pooler_layers,
        encoder_hidden_size=encoder.width,
        encoder_intermediate_size=encoder.mlp_width,
        encoder_num_heads=encoder.n_heads,
        fsq_dim=encoder.width,
        dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )
    return _loaded(model, _weights(size))


@functools.cache
def ours_on_comfyui_ops(size: str) -> AceStep:
    """Return our model built as the nodes build it: ComfyUI's layers and attention."""
    model = AceStep(golden_models.config(size), Build(with_attention(comfy.ops.manual_cast)))
    return _loaded(model, _weights(size))


# transformers.


@functools.cache
def transformers_qwen3() -> Qwen3Model:
    sizes = _sizes(TEXT_ENCODER.shape, num_hidden_layers=TEXT_ENCODER.n_layers, vocab_size=N_TOKENS)
    model = Qwen3Model(TheirQwen3Config(**sizes, rope_theta=TEXT_ENCODER.shape.rope_theta))
    return _loaded(model, _text_encoder_weights())


@functools.cache
def transformers_tokenizer() -> Qwen2TokenizerFast:
    """Return the bundled Qwen tokenizer, appending one end of text as Qwen3-Embedding's tokenizer.json does."""
    tokenizer = Qwen2TokenizerFast.from_pretrained(vocabulary.FOLDER, padding_side="right")
    end = (tokenizer.pad_token, tokenizer.pad_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    return tokenizer


@functools.cache
def our_qwen3() -> Qwen3:
    return _loaded(Qwen3(TEXT_ENCODER), _text_encoder_weights())


@functools.cache
def _text_encoder_weights() -> dict[str, Tensor]:
    expected = Qwen3(TEXT_ENCODER, Build(device="meta")).state_dict()
    return {name: golden_models.weight(name, list(like.shape)) for name, like in expected.items()}


def _loaded(model: Any, state: Mapping[str, Tensor]) -> Any:
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False)


# The whole way from prompt to latents.


class Reader:
    """The tiny text encoder, as the nodes' one reads."""

    def __init__(self) -> None:
        self.tokenizer = vocabulary.tokenizer()

    def states(self, text: Ids) -> Tokens:
        return Tokens(our_qwen3()(text.ids, torch.float32), text.attention_mask)

    def embeddings(self, text: Ids) -> Tokens:
        return Tokens(our_qwen3().embed(text.ids, torch.float32), text.attention_mask)


def diffusers_pipeline(size: str, silence: Tensor) -> AceStepPipeline:
    """Return diffusers' whole pipeline without a VAE: latents are enough."""
    encoder = official_condition_encoder(size)
    encoder.silence_latent = silence
    made = AceStepPipeline(
        vae=None,
        text_encoder=transformers_qwen3(),
        tokenizer=transformers_tokenizer(),
        transformer=diffusers_transformer(size),
        condition_encoder=encoder,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=diffusers_tokenizer(size),
        audio_token_detokenizer=diffusers_detokenizer(size),
    )
    made.set_progress_bar_config(disable=True)
    return made


class ConditionRun(Run):
    """A Run whose branches name a Condition where the product names an Encoding: tests make conditions by hand."""

    def _n_tokens(self, branch: Branch) -> int:
        return branch.encoding.tokens.states.shape[1]

    def _tokens(self, computed: Computed, branch: Branch, x: Tensor) -> Tokens:
        return branch.encoding.tokens

    def _context(self, computed: Computed, branch: Branch, x: Tensor) -> Tensor:
        return branch.encoding.context.index_select(0, torch.tensor(branch.rows))
