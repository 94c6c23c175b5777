"""Number formats: which the hardware has, and faithful emulation of those it lacks.

Emulation keeps tensors in fp32, rounds values onto the format's grid where the real arithmetic would
store them (inputs and outputs of every layer, outputs of every decoder block) and multiplies in fp32.
Logits stay fp32. Rounding is a cast there and back, so autograd rounds the activation gradients too.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from drpo_bench.precision_configs import PrecisionConfig, RolloutPrecision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
E4M3_MAX = 448.0

# What would make an emulated part real.
REMEDIES = {
    "bf16": "run on a GPU with compute capability 8.0 or above, or on a CPU with AVX512-BF16",
    "fp16": "run on a GPU",
    "fp8": "run on a GPU with compute capability 9.0 or above",
} | dict.fromkeys(
    ("fp8 weights", "fp8 activations", "fp8 keys and values"),
    "run on a GPU with compute capability 8.9 or above and set rollout.engine = 'vllm', which has kernels for it there",
)
# Compute capability from which torchao (trainer) and vLLM multiply fp8; below, vLLM would leave activations in 16 bits.
FP8_SINCE = {"rollout": (8, 9), "trainer": (9, 0)}


def is_native(dtype: str, device: torch.device) -> bool:
    """Whether the device multiplies this format in hardware; else it is emulated and labelled so.

    "fp8" is the trainer's: forward and backward with a scale a row.
    """
    if dtype == "fp32":
        return True
    if device.type == "cuda":
        if dtype == "fp8":
            return torch.cuda.get_device_capability(device) >= FP8_SINCE["trainer"]
        return dtype == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == "bf16":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False  # a CPU's fp16 backward is 16 times slower than fp32 where there is one at all


def emulated_trainer(dtype: str, device: torch.device) -> list[str]:
    """The parts of a trainer of this format that the device can only emulate, as `REMEDIES` names them."""
    return [] if is_native(dtype, device) else [dtype]


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies fp8 in vLLM's kernels."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_SINCE["rollout"]


def emulated_rollout(config: RolloutPrecision, device: torch.device, engine: str = "torch") -> list[str]:
    """The parts of a rollout engine that the device can only emulate, as `REMEDIES` names them.

    vLLM's own kernels on a CPU round as those on a GPU do, but the processor still multiplies in a wider format.
    """
    parts = [] if is_native(config.dtype, device) else [str(config.dtype)]
    if engine == "vllm" and config.has_fp8 and has_fp8(device):
        return parts
    parts += ["fp8 weights"] * config.fp8_weights + ["fp8 activations"] * config.fp8_activations
    return parts + ["fp8 keys and values"] * config.fp8_kv


def emulated_parts(precision: PrecisionConfig, engine: str, device: torch.device) -> dict[str, list[str]]:
    """What of a run is emulated on the device, by side; empty lists where nothing is."""
    return {
        "trainer": emulated_trainer(precision.trainer, device),
        "rollout": emulated_rollout(precision.rollout, device, engine),
    }


def refuse_emulation(precision: PrecisionConfig, engine: str, device: torch.device) -> None:
    """Raise ValueError where a format of the run would be emulated; it names the field and the remedy."""
    for side, parts in emulated_parts(precision, engine, device).items():
        if parts:
            remedies = "; ".join(dict.fromkeys(REMEDIES[part] for part in parts))
            machine = "CPU" if device.type == "cpu" else "GPU"
            raise ValueError(
                f"precision.{side}: this {machine} can only emulate {' and '.join(parts)}; "
                f"{remedies}, or set runtime.allow_emulation = true"
            )


def compute_format(trainer: str) -> str:
    """The format of everything that a trainer's fp8 layers do not cover."""
    return "bf16" if trainer == "fp8" else trainer


def round_to(values: Tensor, dtype: str) -> Tensor:
    """Values on the grid of `dtype`, held in float32; the gradient is rounded likewise."""
    return values if dtype == "fp32" else values.to(DTYPES[dtype]).float()


def round_e4m3(values: Tensor) -> Tensor:
    """Nearest float8 e4m3fn value (ties to even) of float32 values within +-448, held in float32.

    Adding and subtracting 1.5 * 2^23 * step rounds to a multiple of step in the fp32 adder; the step is
    2^-3 of the value's binade and 2^-9 below the smallest normal 2^-6. Twice as fast as a cast there and back.
    """
    binade = (values.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=2.0**-6)
    magic = binade.mul_(1.5 * 2.0**20)
    return (values + magic).sub_(magic)


def quantise_e4m3(values: Tensor) -> Tensor:
    """Round to e4m3 with one dynamic scale a row (last dimension): amax maps to 448.

    A row with an infinity or a NaN becomes NaN as a whole: an overflow must not be clamped to a number.
    """
    scale = values.abs().amax(-1, keepdim=True).clamp_(min=1e-12).div_(E4M3_MAX)
    return round_e4m3((values / scale).clamp_(-E4M3_MAX, E4M3_MAX)).mul_(scale)


def decoder_linears(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that fp8 covers: all but embeddings, head, router and norms."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    return [layer for layer in layers if layer.out_features > 1]  # one output is a gate, as of shared experts


def is_layer(module: nn.Module) -> bool:
    """A module that computes something by itself: it holds no others, or weights besides them, as experts do."""
    return not list(module.children()) or bool(list(module.parameters(recurse=False)))


def emulate_compute(model: nn.Module, dtype: str) -> None:
    """Make a fp32 model round its activations (and, in backward, their gradients) onto the grid of `dtype`."""
    if dtype == "fp32":
        return

    def round_all(value: object) -> object:
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            if getattr(value, "on_grid", None) == dtype:  # a layer's output that is the next one's input
                return value
            rounded = round_to(value, dtype)
            rounded.on_grid = dtype  # type: ignore[attr-defined]
            return rounded
        if isinstance(value, tuple):
            return tuple(round_all(item) for item in value)
        return value

    def round_input(module: nn.Module, args: tuple[object, ...]) -> object:
        return round_all(args)

    def round_output(module: nn.Module, args: tuple[object, ...], output: object) -> object:
        return round_all(output)

    head = model.get_output_embeddings()  # type: ignore[operator]
    blocks = [child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module]
    leaves = [module for module in model.modules() if is_layer(module) and module is not head]
    for module in leaves:
        module.register_forward_pre_hook(round_input)
    for module in [*leaves, *blocks]:
        module.register_forward_hook(round_output)
    head.register_forward_pre_hook(round_input)


def quantise_inputs(linears: Iterable[nn.Linear]) -> None:
    """Make each linear layer quantise its input to e4m3, one dynamic scale a token."""

    def quantise(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        inputs = args[0]
        if not hasattr(inputs, "as_e4m3"):  # queries, keys and values share one input
            inputs.as_e4m3 = quantise_e4m3(inputs.float()).to(inputs.dtype)  # type: ignore[attr-defined]
        return (inputs.as_e4m3, *args[1:])  # type: ignore[attr-defined]

    for linear in linears:
        linear.register_forward_pre_hook(quantise)


def cast_parameters(model: nn.Module, dtype: str) -> None:
    """Hold the parameters in `dtype`. Buffers keep theirs: rotary frequencies in bf16 would be another model."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])


def cast_weights(source: Tensor, dtype: str, fp8_dim: int | None) -> Tensor:
    """fp32 weights as the engine sees them: on the grid of `dtype`, and from there e4m3 with a scale an output channel.

    Engines get the weights in `dtype` before they quantise: e4m3 of the masters would be other weights.
    `fp8_dim`: the dimension that the product sums over, the last or the one before; None where fp8 does not apply.
    """
    rounded = round_to(source, dtype)
    if fp8_dim is None:
        return rounded
    return quantise_e4m3(rounded) if fp8_dim == -1 else quantise_e4m3(rounded.mT.contiguous()).mT
