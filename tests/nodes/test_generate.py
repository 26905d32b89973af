"""ComfyUI's way from noise to latents is the core's: our guider and wrappers against `pipeline.generate`."""

from collections.abc import Callable, Sequence

import comfy.patcher_extension
import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.generate import generate, guided_velocity, solve
from acestep_pack.acestep_core.pipeline.guidance import METHODS
from acestep_pack.acestep_core.pipeline.morph import Morph
from acestep_pack.acestep_core.pipeline.options import Options
from acestep_pack.acestep_core.pipeline.region import region
from acestep_pack.acestep_core.pipeline.run import Branch, Run
from acestep_pack.acestep_core.pipeline.sample import SOLVERS, Evaluation, SamplerSettings
from acestep_pack.acestep_core.pipeline.takes import Request, prepare
from acestep_pack.acestep_core.pipeline.tasks import (
    RULES,
    TEXT2MUSIC,
    Source,
    Task,
    complete,
    cover,
    extend,
    extract,
    lego,
    repaint,
    stitch,
)
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.host.conditioning import Prompt, conditioning_of
from acestep_pack.nodes.host.guider import run
from acestep_pack.nodes.host.latents import Origins
from golden_models import z

N_FRAMES, CHANNELS, N_STEPS = 130, 64, 2
SOURCE = Source(z("source", 1, N_FRAMES, CHANNELS))
TASKS: dict[str, Task] = {
    "text2music": TEXT2MUSIC,
    "cover": cover(SOURCE, strength=0.5, noise_strength=0.3),
    "cover-nofsq": cover(SOURCE, hints=False),
    "repaint": repaint(SOURCE, region(N_FRAMES, 1.0, 2.0)),
    "extend": extend(SOURCE, 0.0, 1.0),
    "stitch": stitch(SOURCE, SOURCE, 0.5),
    "lego": lego(SOURCE, "drums"),
    "extract": extract(SOURCE, ("vocals", "bass")),
    "complete": complete(SOURCE, ("drums",)),
}


@pytest.fixture(scope="module")
def model(golden_model: Callable[[str], object]):
    return golden_model("base")


def encoding(task: Task, codes: AudioCodes | None = None) -> Encoding:
    def tokens(name: str, n_tokens: int) -> Tokens:
        return Tokens(z(name, 1, n_tokens, 48), torch.ones(1, n_tokens, dtype=torch.bool))

    return Encoding(
        tokens("text", 7), tokens("text_t2m", 7), tokens("lyric", 20), codes=codes or AudioCodes(), task=task
    )


class DataRun(Run):
    """A Run that rounds as ComfyUI does: latents lie as [B, 64, T] there, and models give data, not velocities."""

    def velocity(self, x: Tensor, t: float, branches: Sequence[Branch]) -> Tensor:
        return by_data(super().velocity(x.mT.contiguous().mT, t, branches), x, t)


def by_data(v: Tensor, x: Tensor, t: float) -> Tensor:
    sigma = t or 1.0
    return (x - (x - v * sigma)) / sigma


def compare(model, made_of: Encoding, options: Options, guidance: float) -> None:
    """Fail unless two takes a plan by ComfyUI are those by the core: to the bit, where both round alike."""
    task, silence = made_of.task, model.model.silence
    request = Request(seed=5, takes_per_plan=2, n_steps=N_STEPS, guidance=guidance, options=options)
    empty = torch.zeros(1, task.window_frames or N_FRAMES, CHANNELS)
    takes = prepare(request, "base", task, made_of.n_plans, empty, silence)
    prompt = Prompt.of(conditioning_of(made_of, Origins()), empty.shape[1])
    by_comfyui, _ = run(model, prompt, takes.job(), seed=5, shift=takes.resolved.shift, on_step=lambda index: None)
    network = model.model.diffusion_model
    if options.settings.solver == "euler":  # the function itself, which rounds otherwise; its pieces follow
        by_core = generate(network, made_of, silence, takes.job())
        assert (by_comfyui - by_core).abs().max() <= 1e-3 * by_core.abs().max()

    job = takes.job()
    rounding = DataRun(network, silence)
    rounding.expect([level for level in job.levels if level > 0])
    velocity = guided_velocity(rounding, made_of, job)

    def rounded_velocity(x: Tensor, at: Evaluation) -> Tensor:
        v = velocity(x, at)
        return by_data(v, x, at.t) if job.guidance.applies_at(at.t) else v  # guidance is joined in data too

    rounded = solve(job, rounded_velocity, silence.device)
    assert torch.equal(by_comfyui, rounded), f"max error {(by_comfyui - rounded).abs().max():.1e}"


def test_every_task_is_here() -> None:
    assert set(TASKS) == set(RULES)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("method", ["none", *METHODS])
@pytest.mark.parametrize("name", TASKS)
def test_comfyui_and_the_core_make_the_same_bits(model, name: str, method: str, solver: str) -> None:
    options = Options("apg" if method == "none" else method, settings=SamplerSettings(solver))
    compare(model, encoding(TASKS[name]), options, 1.0 if method == "none" else 5.0)


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_plans_of_codes_are_the_same_bits(model, method: str) -> None:
    codes = AudioCodes(tuple(tuple((613 * i + plan) % 64_000 for i in range(26)) for plan in range(2)))
    options = Options("apg" if method == "none" else method, guidance_interval=(0.2, 0.9))
    compare(model, encoding(TEXT2MUSIC, codes), options, 1.0 if method == "none" else 5.0)


def test_a_morph_without_the_prompt_it_comes_from_is_refused(model) -> None:
    made_of, silence = encoding(TASKS["cover-nofsq"]), model.model.silence
    request = Request(n_steps=2, guidance=1.0, options=Options(morph=Morph()))
    empty = torch.zeros(1, made_of.task.window_frames, CHANNELS)
    takes = prepare(request, "base", made_of.task, 1, empty, silence)
    with pytest.raises(ValueError, match="a morph needs the prompt that it comes from"):
        generate(model.model.diffusion_model, made_of, silence, takes.job())


def test_cores_callback_gets_the_latents_as_they_are_in_each_step(model) -> None:
    seen: list[Tensor] = []

    def watch(executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **more) -> Tensor:
        def watched(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            seen.append(x.clone())

        return executor(noise, latent_image, sampler, sigmas, denoise_mask, watched, *rest, **more)

    patcher = model.clone()
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "watch", watch)
    asked: list[Tensor] = []
    takes = prepare(
        Request(seed=5, n_steps=N_STEPS, guidance=1.0), "base", TEXT2MUSIC, 1, SOURCE.latents * 0, model.model.silence
    )
    made_of = encoding(TEXT2MUSIC)
    prompt = Prompt.of(conditioning_of(made_of, Origins()), takes.n_frames)

    def ask(apply: Callable, given: dict) -> Tensor:
        asked.append(given["input"].clone())
        return apply(given["input"], given["timestep"], **given["c"])

    patcher.set_model_unet_function_wrapper(ask)
    run(patcher, prompt, takes.job(), seed=5, shift=1.0, on_step=lambda index: None)
    assert len(seen) == len(asked) == N_STEPS
    assert all(torch.equal(shown, given) for shown, given in zip(seen, asked, strict=True))
    assert not torch.equal(seen[0], seen[1])
