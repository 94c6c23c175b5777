"""How figures look: one colour, line, marker and name a loss, whatever else is in the picture; paper sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

DASHES: dict[str, Any] = {
    "solid": "-",
    "dashed": (0, (4, 1.5)),
    "dotted": (0, (1, 1.2)),
    "dashdot": (0, (5, 1.2, 1, 1.2)),
    "long": (0, (8, 2)),
    "dashdotdot": (0, (5, 1.2, 1, 1.2, 1, 1.2)),
}


@dataclass(frozen=True)
class LossStyle:
    """One loss in every figure. Line and marker tell losses apart where colours cannot."""

    label: str
    color: str
    line: str
    marker: str

    @property
    def dashes(self) -> Any:
        """The line style as matplotlib takes it."""
        return DASHES[self.line]


# The five main losses have colours of Okabe and Ito's palette (safe for colour-blind readers) of different
# lightness; relatives share a hue. A new loss gets a row of its own and never another's.
STYLES: dict[str, LossStyle] = {
    "drpo": LossStyle("DRPO", "#D55E00", "solid", "o"),
    "dppo_tv": LossStyle("DPPO-TV", "#0072B2", "long", "s"),
    "grpo": LossStyle("GRPO", "#009E73", "dashed", "^"),
    "spo": LossStyle("SPO", "#CC79A7", "dashdot", "D"),
    "pg_is": LossStyle("PG-IS", "#4D4D4D", "dotted", "v"),
    "pg_tis": LossStyle("PG-TIS", "#7A7A7A", "dashdotdot", "v"),
    "reinforce": LossStyle("REINFORCE", "#999999", "dotted", "P"),
    "topr": LossStyle("TOPR", "#7F7F4C", "dashdot", "P"),
    "gspo": LossStyle("GSPO", "#66A61E", "dashed", "<"),
    "gmpo": LossStyle("GMPO", "#A6761D", "dashdotdot", ">"),
    "cispo": LossStyle("CISPO", "#117733", "dashdot", "<"),
    "minirl": LossStyle("MiniRL", "#44AA99", "long", ">"),
    "decoupled_ppo": LossStyle("Decoupled PPO", "#1B9E9E", "dotted", "^"),
    "sapo": LossStyle("SAPO", "#999933", "dashed", "h"),
    "clip_cov": LossStyle("Clip-Cov", "#5B7F00", "dashdot", "d"),
    "kl_cov": LossStyle("KL-Cov", "#8FBC3B", "dashdotdot", "d"),
    "dppo_kl": LossStyle("DPPO-KL", "#56B4E9", "dashed", "s"),
    "dppo_topk_tv": LossStyle("DPPO-top-k-TV", "#332288", "dashdot", "X"),
    "dppo_topk_kl": LossStyle("DPPO-top-k-KL", "#7570B3", "dotted", "X"),
    "mask_drpo": LossStyle("Mask-DRPO", "#E69F00", "dashed", "o"),
    "drpo_no_abs_advantage": LossStyle("DRPO without |A|", "#882255", "dashdot", "p"),
    "penalty": LossStyle("Penalty", "#AA4466", "dashdotdot", "p"),
    "vespo": LossStyle("VESPO", "#8C564B", "long", "P"),
    "dro": LossStyle("DRO", "#9467BD", "dotted", "h"),
    "relaxed_grpo": LossStyle("Relaxed GRPO", "#52B788", "dotted", "^"),
    "dis": LossStyle("DIS", "#17BECF", "dashed", ">"),
    "opsm": LossStyle("OPSM", "#2D6A4F", "dashdotdot", "<"),
    "cppo": LossStyle("CPPO", "#4E79A7", "dotted", "s"),
    "ipo": LossStyle("IPO", "#B07AA1", "dashed", "X"),
    "neg_mask": LossStyle("Neg-mask", "#76B7B2", "dashdot", "v"),
}
# For ids that have no row yet: chosen by a hash of the id, so that no other loss has a say in it.
SPARE_COLORS = ("#8C564B", "#9467BD", "#17BECF", "#BCBD22", "#E377C2", "#4E79A7", "#B07AA1", "#76B7B2")
SPARE_MARKERS = ("*", "H", "8", "p", "d", "P", "h", "X")

TIMES = "\u00d7"
PRECISIONS = ("fp32", "bf16", "fp16", "fp8_rollout", "fp8_e2e")  # in the order of figures
MODELS = ("nano", "micro", "mini", "small")

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titley": 1.0,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


def loss_style(loss: str) -> LossStyle:
    """The style of a loss id; the same one for ever, with or without a row in STYLES."""
    if loss in STYLES:
        return STYLES[loss]
    digest = hashlib.sha256(loss.encode()).digest()
    line = list(DASHES)[digest[1] % len(DASHES)]
    color, marker = SPARE_COLORS[digest[0] % len(SPARE_COLORS)], SPARE_MARKERS[digest[2] % len(SPARE_MARKERS)]
    return LossStyle(loss.replace("_", "-"), color, line, marker)


def loss_order(loss: str) -> tuple[int, str]:
    """The order of losses in legends and tables: pg_is, the limit of the others, first, and drpo last of the five."""
    main = ("pg_is", "grpo", "spo", "dppo_tv", "drpo")
    return (main.index(loss), "") if loss in main else (len(main), loss)


def variant_style(style: LossStyle, variant: int, variants: Collection[int]) -> LossStyle:
    """The style of a loss with other parameters than its usual ones, which are variant 0 and look like the loss.

    Smaller ones (negative) are darker, larger ones lighter; each takes the next kind of dashes.
    """
    if variant == 0:
        return style
    names = list(DASHES)
    line = names[(names.index(style.line) + variant) % len(names)]
    last = min(variants) if variant < 0 else max(variants)
    return replace(style, color=blend(style.color, 0 if variant < 0 else 255, 0.55 * variant / last), line=line)


def blend(color: str, towards: int, share: float) -> str:
    """A hex colour, `share` of the way to black (0) or white (255)."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + (towards - c) * share):02X}" for c in channels)
