"""What vLLM loads in each of its processes (entry point ``vllm.general_plugins``): the models that we bring to it."""

from typing import Any

ARCHITECTURE = "RWKV7ForCausalLM"


def register() -> None:
    """Make RWKV-7, its configuration and the World tokenizer known to vLLM and transformers; may be called again."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, MambaModelConfig

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
