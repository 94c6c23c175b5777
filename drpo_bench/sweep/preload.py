"""What the forkserver imports once, so that no run pays for it; imported by nothing else.

The garbage collector would look through half a million objects again and again while they come in, for a third of the
seconds that it takes, and would touch, in every worker, memory that all share: it starts when they are out of its way.
"""

import gc
from importlib import import_module
from typing import Any

utils: Any = import_module("transformers.utils")
is_available = utils.is_sklearn_available
gc.disable()
# Its assisted generation, which nothing here uses, would load scikit-learn where that is installed: a second.
utils.is_sklearn_available = lambda: False
try:
    import_module("transformers.models.qwen3.modeling_qwen3")
    import_module("drpo_bench.sweep.worker")
    import_module("drpo_bench.trainer")
finally:
    utils.is_sklearn_available = is_available
    gc.freeze()
    gc.enable()
