"""What runs the model."""

from typing import Any, Literal

from pydantic import Field

from eggroll_rl.config.values import Count, CountOrZero, GiB, Processes, Seconds, Section


class PoolConfig(Section):
    """Replicas of the engine in Ray actors, on this machine or on all of a Ray cluster that is running."""

    replicas: Processes = 2
    """Number of replicas."""
    chunk: Count | None = None
    """Members that go to a replica at a time; null: half of its equal share."""
    patience: float = Field(5.0, gt=1, le=1e6)
    """A replica that takes so many times as long as the others do (their median) is replaced."""
    grace: Seconds = 60.0
    """Seconds that a replica has in any case before it is replaced for taking longer than the others."""
    verify_every: CountOrZero = 10
    """Updates after which the replicas' weights are compared; 0: never."""
    threads: Processes | None = None
    """Threads of torch in each replica; null: as many as the actor has CPUs."""
    actor: dict[str, Any] = Field(default_factory=dict)
    """Options of Ray's actors by their names there, such as ``num_gpus``."""


class VLLMConfig(Section):
    """Options of the engine ``vllm``."""

    slots: Count | None = None
    """Members that answer at a time, the others in waves after them; null: all at once."""
    tensor_parallel_size: Processes = 1
    """GPUs that share one model; on a CPU, processes that share its cores."""
    masters: Literal["device", "cpu"] = "device"
    """Whether the fp32 weights and the optimizer are on the GPU or on the host."""
    gpu_memory_utilization: float = Field(0.7, gt=0, lt=1)
    """The share of a GPU's memory that vLLM takes, before the masters are put there."""
    kv_cache_gib: GiB | None = None
    """Size of vLLM's cache of keys and values, in GiB; null: what ``gpu_memory_utilization`` leaves, or 2 on a CPU."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer together; null: as many as the model takes."""
    enforce_eager: bool = False
    """Run without CUDA graphs."""


class EngineConfig(Section):
    """What runs the model."""

    name: str = "transformers"
    """``local`` is the fastest way in this process, ``transformers`` the same without the fused step of an RWKV-7 on a
    CPU, ``rwkv`` is ``local`` for RWKV-7 only, ``egg`` runs models of integers, ``vllm`` is vLLM; or an engine that
    another package brings."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights that answer; weights that learn are fp32."""
    device: str = Field("auto", pattern=r"^[a-z]+(:\d{1,4})?$")
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""
    max_rows: Count | None = None
    """Rows (members x prompts) of one batch; null: by ``batch_bytes``."""
    batch_bytes: int | None = Field(None, ge=1, le=10**12)
    """Memory that the rows of a batch may take, in bytes; null: half of what is free at the start,
    in a pool or a launch half of what the first replica finds."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of an engine that another package brings."""
    pool: PoolConfig | None = None
    """Run replicas of the engine in Ray actors; null: one engine, in this process."""
    deadline: float = Field(7200.0, gt=0, le=30 * 86400)
    """Seconds in which a replica of a pool or a process of a launcher must finish a call, and after which one that
    gives no sign of life is lost. A pool starts another in its place, a launch ends with a message."""
    vllm: VLLMConfig = VLLMConfig()
    """Options of vLLM, for that engine alone."""
