"""Adapters that PEFT and LyCORIS themselves made and saved: loading one gives what their own forward gives."""

from collections.abc import Callable
from pathlib import Path

import lycoris
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import golden_models
from acestep_pack.acestep_core.lora.change import merged
from acestep_pack.acestep_core.lora.files import Adapter, read_adapter
from acestep_pack.acestep_core.lora.fit import fit
from acestep_pack.acestep_core.models.acestep import AceStep
from golden_models import z

pytestmark = pytest.mark.parity

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
SAME = 1e-5  # of what the DiT puts out, which is around 1


def fresh() -> AceStep:
    """Return a network of its own: peers change the modules of theirs."""
    network = AceStep(golden_models.config("2b")).eval()
    network.load_state_dict(golden_models.weights("2b"))
    return network.requires_grad_(False)


@torch.no_grad()
def velocity(network: AceStep) -> Tensor:
    x, context = z("x", 1, 37, 64), z("context", 1, 37, 128)
    return network.velocity(x, torch.tensor([0.7]), context, z("states", 1, 9, 64))


@torch.no_grad()
def ours(path: Path) -> tuple[Adapter, Tensor]:
    """Return an adapter as we read it, and the velocity of a network that it is merged into."""
    network, adapter = fresh(), read_adapter(path)
    state = network.state_dict()
    found = fit(adapter, {name: weight.shape for name, weight in state.items()})
    assert found.left_over == ()
    for name, change in found.changes.items():
        state[name].copy_(merged(state[name], [(1.0, change)]))
    return adapter, velocity(network)


def randomize(module: nn.Module, words: tuple[str, ...]) -> None:
    """Fill what training would, so that nothing stays at the zero it starts from."""
    for name, parameter in module.named_parameters():
        if any(word in name for word in words):
            noise = 0.2 * z(name, *parameter.shape)
            parameter.data = parameter.data * (1 + noise) if "magnitude" in name or "dora_scale" in name else noise


def assert_same(found: Tensor, expected: Tensor) -> None:
    error = (found - expected).abs().max().item()
    cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0).item()
    assert (expected - velocity(fresh())).abs().max() > 0.05, "the peer's adapter does nothing"
    assert error <= SAME, f"max error {error:.1e}, cosine {cosine:.8f}"


PEFT_METHODS: dict[str, tuple[str, Callable[[], peft.PeftConfig]]] = {
    "LoRA": ("PEFT LoRA", lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=PROJECTIONS)),
    "every projection": (
        "PEFT LoRA",
        lambda: peft.LoraConfig(r=3, target_modules=[*PROJECTIONS, "gate_proj", "up_proj", "down_proj"]),
    ),
    "rsLoRA": (
        "PEFT LoRA",
        lambda: peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=PROJECTIONS),
    ),
    "patterns": (
        "PEFT LoRA",
        lambda: peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=PROJECTIONS,
            rank_pattern={"self_attn.q_proj": 2, "layers.0.cross_attn.v_proj": 6},
            alpha_pattern={r".*cross_attn\.[kv]_proj": 3},
        ),
    ),
    "DoRA": ("PEFT DoRA", lambda: peft.LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=PROJECTIONS)),
    "LoHa": ("PEFT LoHa", lambda: peft.LoHaConfig(r=4, alpha=8, target_modules=PROJECTIONS)),
    "LoKr": ("PEFT LoKr", lambda: peft.LoKrConfig(r=2, alpha=8, target_modules=PROJECTIONS)),
    "LoKr, both factored": (
        "PEFT LoKr",
        lambda: peft.LoKrConfig(r=2, alpha=8, decompose_both=True, target_modules=PROJECTIONS),
    ),
    "LoKr, both whole": ("PEFT LoKr", lambda: peft.LoKrConfig(r=64, alpha=128, target_modules=PROJECTIONS)),
}


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_what_peft_saved_is_what_peft_computes(tmp_path: Path, method: str) -> None:
    title, config = PEFT_METHODS[method]
    network = fresh()
    wrapped = peft.get_peft_model(network.decoder, config())
    randomize(wrapped, ("lora_", "hada_", "lokr_"))
    wrapped.save_pretrained(tmp_path)
    adapter, found = ours(tmp_path)
    assert adapter.format == title
    assert_same(found, velocity(network))


def test_an_oft_adapter_of_peft_is_refused(tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(fresh().decoder, peft.OFTConfig(oft_block_size=8, target_modules=PROJECTIONS))
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an adapter of kind OFT, which is not supported"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="is an adapter of kind OFT, which is not supported"):
        read_adapter(tmp_path)


def test_an_adapter_of_a_language_model_by_peft_is_refused(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 32}
    planner = Qwen3ForCausalLM(Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=32))
    peft.get_peft_model(planner, peft.LoraConfig(target_modules=PROJECTIONS)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an adapter for a language model such as the planner"):
        read_adapter(tmp_path)


LYCORIS_METHODS = {
    "LoRA": ("LyCORIS LoRA", {"algo": "lora"}),
    "DoRA": ("LyCORIS DoRA", {"algo": "lora", "dora_wd": True}),
    "DoRA, input axis": ("LyCORIS DoRA", {"algo": "lora", "dora_wd": True, "wd_on_out": False}),
    "LoHa": ("LyCORIS LoHa", {"algo": "loha"}),
    "LoKr": ("LyCORIS LoKr", {"algo": "lokr", "factor": 4}),
    "LoKr, both factored": ("LyCORIS LoKr", {"algo": "lokr", "factor": 8, "decompose_both": True}),
    "LoKr, both whole": ("LyCORIS LoKr", {"algo": "lokr", "full_matrix": True}),
    "DoKr": ("LyCORIS DoKr", {"algo": "lokr", "factor": 4, "dora_wd": True}),
    "DoKr, input axis": ("LyCORIS DoKr", {"algo": "lokr", "factor": 4, "dora_wd": True, "wd_on_out": False}),
}


@pytest.mark.parametrize("method", LYCORIS_METHODS)
def test_what_lycoris_saved_is_what_lycoris_computes(tmp_path: Path, method: str) -> None:
    title, settings = LYCORIS_METHODS[method]
    network = fresh()
    # Every linear layer of the decoder and its first convolution, at a rank that leaves small factors in two.
    made = lycoris.create_lycoris(network.decoder, 1.0, linear_dim=2, linear_alpha=3.0, **settings)
    made.apply_to()
    randomize(made, ("lora_", "hada_", "lokr_", "dora_scale"))
    save_file({key: tensor.contiguous() for key, tensor in made.state_dict().items()}, tmp_path / "made.safetensors")
    adapter, found = ours(tmp_path / "made.safetensors")
    assert adapter.format == title
    assert len(adapter.changes) == len(made.loras)
    assert_same(found, velocity(network))
