"""What torch sees: the processor's vector units, the GPUs, and which number formats each multiplies for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from drpo_bench.environment import cpu_name
from drpo_bench.precision import DTYPES, FP8_SINCE, is_native

UNITS = {
    "AVX2": "_is_avx2_supported",
    "AVX512": "_is_avx512_supported",
    "AVX512-BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}
FORMATS = (*DTYPES, "fp8", "fp8_kv")
DRIVER = Path("/proc/driver/nvidia/version")


def describe_devices() -> dict[str, Any]:
    """The processor, the GPUs, and real or emulated for every format and side on each of them."""
    units = {name: has_unit(function) for name, function in UNITS.items()}
    gpus = [describe_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    devices = [("cpu", (0, 0)), *((gpu["device"], tuple(gpu["capability"])) for gpu in gpus)]
    return {
        "cpu": {"name": cpu_name(), "units": units},
        "gpus": gpus,
        "gpu_unused": not gpus and DRIVER.exists(),
        "torch_cuda": torch.version.cuda,
        "precisions": [
            {"device": device, "format": name}
            | {side: arithmetic(name, side, torch.device(device), capability) for side in ("trainer", "rollout")}
            for device, capability in devices
            for name in FORMATS
        ],
    }


def arithmetic(name: str, side: str, device: torch.device, capability: tuple[int, ...]) -> str | None:
    """`real`, `emulated`, or None: a trainer has no KV cache."""
    if name == "fp8_kv" and side == "trainer":
        return None
    fp8 = device.type == "cuda" and capability >= FP8_SINCE[side]
    return "real" if (is_native(name, device) if name in DTYPES else fp8) else "emulated"


def describe_gpu(index: int) -> dict[str, Any]:
    """Name, compute capability and memory; free is None for a GPU that another process has to itself."""
    properties = torch.cuda.get_device_properties(index)
    try:
        free = torch.cuda.mem_get_info(index)[0]
    except RuntimeError:
        free = None
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "memory_total": properties.total_memory,
        "memory_free": free,
    }


def has_unit(function: str) -> bool:
    """What torch says of a vector unit; False where this torch does not know it."""
    return bool(getattr(torch.cpu, function, bool)())
