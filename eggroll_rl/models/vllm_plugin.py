"""vLLM's plugin, which it loads in each of its processes (entry point ``vllm.general_plugins``). It adds our models,
makes adapters work on int8 layers in vLLM's build for CPUs, and ends the processes of a run that is no more."""

import os
from functools import cache, wraps
from select import POLLIN, poll
from threading import Thread
from typing import Any

import torch
from torch import nn

ARCHITECTURE = "RWKV7ForCausalLM"
CLIENT = "EGGROLL_VLLM_CLIENT"  # in the environment: the process that starts this vLLM for itself


def register() -> None:
    """Make RWKV-7, its configuration and the World tokenizer known to vLLM and transformers, and int8 layers on a CPU
    fit for adapters; may be called again."""
    _end_with_client(os.getpid())
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, MambaModelConfig
    from vllm.platforms import current_platform

    import eggroll_rl.models.rwkv7
    import eggroll_rl.models.world  # noqa: F401  both register themselves with transformers

    class RWKV7Defaults(MambaModelConfig):
        """Each sequence has one state, which is computed anew for each prompt, and no graph is captured."""

        @classmethod
        def verify_and_update_config(cls, vllm_config: Any) -> None:
            from vllm.config import CompilationMode, CUDAGraphMode

            vllm_config.cache_config.enable_prefix_caching = False
            vllm_config.compilation_config.mode = CompilationMode.NONE
            vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.NONE
            super().verify_and_update_config(vllm_config)

    ModelRegistry.register_model(ARCHITECTURE, f"eggroll_rl.models.vllm_rwkv7:{ARCHITECTURE}")
    MODELS_CONFIG_MAP[ARCHITECTURE] = RWKV7Defaults
    if current_platform.is_cpu():
        _keep_weights()


@cache
def _end_with_client(own: int) -> None:
    """End this process, ``own``, when the one that ``CLIENT`` names has ended, however it did: vLLM's engine would wait
    for its next request for ever, and hold its memory."""
    client = int(os.environ.get(CLIENT, "0"))
    if client in (0, own):
        return
    try:
        life = os.pidfd_open(client)
    except ProcessLookupError:
        os._exit(1)
    except OSError:  # a kernel without it: then nobody watches
        return

    def watch() -> None:
        waiting = poll()
        waiting.register(life, POLLIN)
        waiting.poll()
        os._exit(1)

    Thread(target=watch, daemon=True, name="eggroll-rl: the run's life").start()


def _keep_weights() -> None:
    """Leave an empty tensor where a kernel for CPUs has packed int8 weights: vLLM leaves None, and its adapters ask the
    weight for its device."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel as Kernel

    pack = getattr(Kernel.process_weights_for_onednn, "__wrapped__", Kernel.process_weights_for_onednn)

    @wraps(pack)
    def pack_and_keep(kernel: Any, layer: nn.Module) -> None:
        pack(kernel, layer)
        layer.weight = nn.Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False)

    Kernel.process_weights_for_onednn = pack_and_keep
