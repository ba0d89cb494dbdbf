"""Differences of the networks on the device to float32 on the CPU, as a share of the largest value; chunked coding against whole."""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Figure
from benchmarks.gpu.denoiser_pass import check_attention
from benchmarks.gpu.experiments import denoiser_config, fill_zeros, make_inputs, vae_config
from walt_pl.diffusion.condition import Condition
from walt_pl.models.denoiser import Denoiser
from walt_pl.models.vae import VAE

FRAMES, SIDE = 9, 64


def measure(bench: Bench) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    with torch.no_grad():
        _denoiser(bench)
        _autoencoder(bench)


def _denoiser(bench: Bench) -> None:
    config = denoiser_config("ucf101/base_l", bench.quick)
    denoiser = Denoiser(replace(config, attention="sdpa"))
    fill_zeros(denoiser)
    x, timestep, condition = make_inputs(config, 1, "cpu")
    wanted = denoiser(x, timestep, condition, x)
    on_device = Condition(condition.layout, condition.condition_kept.to(bench.device), labels=timestep.to(bench.device) - 10)
    there = x.to(bench.device)

    def work(attention: str, low: bool) -> dict[str, Figure]:
        check_attention(attention, bench)
        twin = Denoiser(replace(config, attention=attention)).to(bench.device)  # type: ignore[arg-type]
        twin.load_state_dict(denoiser.state_dict())
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
            return _difference(twin(there, timestep.to(bench.device), on_device, there), wanted)

    for attention in ("sdpa", "triton"):
        for row, low in (("float32", False), ("bfloat16 autocast", True)):
            bench.attempt(f"denoiser, {attention}, {row}", lambda attention=attention, low=low: work(attention, low))


def _autoencoder(bench: Bench) -> None:
    vae = VAE(vae_config("ucf101/vae", bench.quick)).eval()
    x = torch.rand(1, 3, *((5, 16, 16) if bench.quick else (FRAMES, SIDE, SIDE))) * 2 - 1
    z = vae.encode(x).mean
    y = vae.decode(z)
    twin = vae.to(bench.device)
    there, latents, factor = x.to(bench.device), z.to(bench.device), vae.factors[0]
    for row, low in (("float32", False), ("bfloat16 autocast", True)):

        def encode(low: bool = low) -> dict[str, Figure]:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
                return _difference(twin.encode(there).mean, z)

        def decode(low: bool = low) -> dict[str, Figure]:
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=low):
                return _difference(twin.decode(latents), y)

        bench.attempt(f"autoencoder, encode, {row}", encode)
        bench.attempt(f"autoencoder, decode, {row}", decode)
    bench.attempt("encode in chunks, to whole", lambda: _difference(twin.encode(there, factor).mean, twin.encode(there).mean))
    bench.attempt("decode in chunks, to whole", lambda: _difference(twin.decode(latents, 1), twin.decode(latents)))


def _difference(found: Tensor, wanted: Tensor) -> dict[str, Figure]:
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return {"difference": float((found - wanted).abs().max() / wanted.abs().max())}
