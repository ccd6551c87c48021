"""What runs the model."""

from typing import Any, Literal

from pydantic import Field

from eggroll_rl.config.values import Count, GiB, Processes, Seconds, Section, Turn


class PoolConfig(Section):
    """Replicas of the engine in Ray actors, on this machine or on all of a Ray cluster that is running.

    ``chunk`` members go to a replica at a time, None: half of its equal share. A replica that takes ``patience`` times
    as long as the others, and at least ``grace`` seconds, is replaced. Every ``verify_every`` updates the replicas'
    weights are compared, 0: never. ``threads`` is torch's number in each replica, None: the actor's CPUs. ``actor`` are
    options of Ray's actors by their names there, such as ``num_gpus``.
    """

    replicas: Processes = 2
    chunk: Count | None = None
    patience: float = Field(5.0, gt=1, le=1e6)
    grace: Seconds = 60.0
    verify_every: Turn = 10
    threads: Processes | None = None
    actor: dict[str, Any] = Field(default_factory=dict)


class VLLMConfig(Section):
    """Options of the engine ``vllm``.

    ``slots`` members answer at a time, the others in waves after them; None: all at once. ``tensor_parallel_size``
    divides the model among so many GPUs, or on a CPU its cores among so many processes. ``masters`` says whether the
    fp32 weights and the optimizer are on the GPU or on the host. The rest goes to vLLM: ``gpu_memory_utilization`` is
    what it takes of a GPU before the masters come, ``kv_cache_gib`` its cache instead (None: by that share, or 2 on a
    CPU), ``max_model_len`` bounds prompt and answer together (None: the model's own), ``enforce_eager`` does without
    CUDA graphs.
    """

    slots: Count | None = None
    tensor_parallel_size: Processes = 1
    masters: Literal["device", "cpu"] = "device"
    gpu_memory_utilization: float = Field(0.7, gt=0, lt=1)
    kv_cache_gib: GiB | None = None
    max_model_len: Count | None = None
    enforce_eager: bool = False


class EngineConfig(Section):
    """What runs the model: ``local`` the fastest way in this process, ``transformers`` its forward passes alone,
    ``rwkv`` the same as ``local`` for RWKV-7 only, ``vllm``, or an engine that another package brings, with its
    ``options``. ``max_rows`` bounds the rows (members x prompts) of one batch; None: by ``batch_bytes``, what they may
    take of the memory; None: half of what is free at the start.

    ``pool`` runs it many times over; None: once, in this process. ``deadline``, in seconds, is for the replicas of a
    pool and the processes of a launcher: one that does not finish a call by then, or gives no sign of life for so long,
    is lost. A pool starts another in its place, a launch ends with a message.
    """

    name: str = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = Field("auto", pattern=r"^[a-z]+(:\d{1,4})?$")
    max_rows: Count | None = None
    batch_bytes: int | None = Field(None, ge=1, le=10**12)
    options: dict[str, Any] = Field(default_factory=dict)
    pool: PoolConfig | None = None
    deadline: float = Field(7200.0, gt=0, le=30 * 86400)
    vllm: VLLMConfig = VLLMConfig()
