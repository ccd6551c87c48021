"""The options of TRL's ``GRPOConfig`` that a run by evolution strategies has no use for, each with the reason."""

from dataclasses import dataclass
from typing import Any

from eggroll_rl.trainer.options import idle, refused

NO_BACKWARD = "there is no backward pass"
NO_LOSS = "there is no policy-gradient loss: an update is the sum of the perturbations, weighted by fitness"
NO_GRADIENT = "there is no gradient: fitness is normalised, and the optimizer's step follows from it"
NO_KL = "there is no KL term and no reference model"
NO_RATIO = "each population answers once, for one update: nothing is off policy, and no probability is compared"
NO_ENTROPY = "there is no loss that an entropy could enter; members explore by their weights"
NO_LOADER = "prompts are a few texts a generation, and no loader is needed"
NO_EXCHANGE = "processes exchange answers and one number a member, no gradients"
NO_SHARDING = "every process holds the whole model; vllm_tensor_parallel_size divides it"
NO_SERVER = "the members' perturbations live inside vLLM's workers, which no server over HTTP reaches"
NO_TOOLS = "answers come from one turn"
ENGINE_CHOOSES = "the engine chooses how it computes"
BY_MEMORY = "batches follow from the memory that is free; bound them by overrides=['engine.max_rows=64']"
ALL_KEPT = "samples.jsonl and answers.jsonl keep answers of every run"
HUB_AT_END = "the model is pushed once, when training ends"
GONE = "it is no option of TRL 1.16: "


@dataclass(kw_only=True)
class GRPOOnly:
    """Refused where they are set to anything but their default, or of no consequence."""

    # the loss
    beta: float = refused(0.0, NO_KL)
    num_iterations: int = refused(1, NO_RATIO)
    epsilon: float = refused(0.2, NO_LOSS)
    delta: float | None = refused(None, NO_LOSS)
    epsilon_high: float | None = refused(None, NO_LOSS)
    sapo_temperature_neg: float = refused(1.05, NO_LOSS)
    sapo_temperature_pos: float = refused(1.0, NO_LOSS)
    vespo_k_pos: float = refused(2.0, NO_LOSS)
    vespo_lambda_pos: float = refused(3.0, NO_LOSS)
    vespo_k_neg: float = refused(3.0, NO_LOSS)
    vespo_lambda_neg: float = refused(2.0, NO_LOSS)
    importance_sampling_level: str = refused("token", NO_RATIO)
    multi_objective_aggregation: str = refused(
        "sum_then_normalize", "rewards are summed by their weights, then shaped: see fitness_shaping"
    )
    scale_rewards: str = refused("group", "fitness_shaping says how rewards become fitness")
    loss_type: str = refused("dapo", NO_LOSS)
    mask_truncated_completions: bool = refused(
        False, "every answer counts for its member; let a reward give None where it should not"
    )
    sync_ref_model: bool = refused(False, NO_KL)
    ref_model_mixup_alpha: float = refused(0.6, NO_KL)
    ref_model_sync_steps: int = refused(512, NO_KL)
    top_entropy_quantile: float = refused(1.0, NO_ENTROPY)
    entropy_coef: float = refused(0.0, NO_ENTROPY)
    use_adaptive_entropy: bool = refused(False, NO_ENTROPY)
    entropy_coef_min: float = refused(0.0, NO_ENTROPY)
    entropy_coef_max: float = refused(1.0, NO_ENTROPY)
    entropy_coef_delta: float = refused(0.005, NO_ENTROPY)
    entropy_target: float = refused(0.2, NO_ENTROPY)
    off_policy_mask_threshold: float | None = refused(None, NO_RATIO)
    use_bias_correction_kl: bool = idle(True, NO_KL)
    router_aux_loss_coef: float | None = refused(None, NO_LOSS)
    label_smoothing_factor: float = refused(0.0, NO_LOSS)
    average_tokens_across_devices: bool = idle(True, NO_LOSS)
    vllm_importance_sampling_correction: bool = idle(True, NO_RATIO)
    vllm_importance_sampling_mode: str = idle("sequence_mask", NO_RATIO)
    vllm_importance_sampling_clip_max: float | None = idle(3.0, NO_RATIO)
    vllm_importance_sampling_clip_min: float | None = idle(None, NO_RATIO)
    vllm_importance_sampling_cap: float | None = idle(None, NO_RATIO)

    # the gradient and what carries it
    max_grad_norm: float = refused(1.0, NO_GRADIENT)
    adam_epsilon: float = refused(1e-8, "the optimizers have PyTorch's 1e-8")
    lr_scheduler_kwargs: dict[str, Any] | str | None = refused(None, "no schedule here has options")
    optim_args: str | None = refused(None, "weight_decay, adam_beta1, adam_beta2 and momentum are all there is")
    optim_target_modules: str | None = refused(None, "lowrank, dense and frozen say which parameters evolve")
    neftune_noise_alpha: float | None = refused(None, NO_BACKWARD)
    activation_checkpointing: bool | None = idle(None, NO_BACKWARD)
    activation_checkpointing_kwargs: dict[str, Any] | str | None = idle(None, NO_BACKWARD)
    gradient_checkpointing: bool = idle(True, NO_BACKWARD)
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = idle(None, NO_BACKWARD)
    torch_empty_cache_steps: int | None = idle(None, NO_BACKWARD)
    use_liger_kernel: bool = idle(False, NO_LOSS)
    liger_kernel_config: dict[str, bool] | None = idle(None, NO_LOSS)
    auto_find_batch_size: bool = idle(False, BY_MEMORY)
    per_device_eval_batch_size: int = idle(8, BY_MEMORY)
    eval_accumulation_steps: int | None = idle(None, BY_MEMORY)
    ddp_find_unused_parameters: bool | None = idle(None, NO_EXCHANGE)
    ddp_bucket_cap_mb: int | None = idle(None, NO_EXCHANGE)
    ddp_broadcast_buffers: bool | None = idle(None, NO_EXCHANGE)
    ddp_static_graph: bool | None = idle(None, NO_EXCHANGE)
    ddp_backend: str | None = idle(None, NO_EXCHANGE)
    ddp_timeout: int = idle(1800, NO_EXCHANGE)
    ds3_gather_for_generation: bool = idle(True, NO_SHARDING)
    fsdp: str | None = refused(None, NO_SHARDING)
    fsdp_config: dict[str, Any] | str | None = refused(None, NO_SHARDING)
    deepspeed: dict[str, Any] | str | None = refused(None, NO_SHARDING)
    parallelism_config: Any = refused(None, NO_SHARDING)
    accelerator_config: dict[str, Any] | str | None = refused(None, NO_EXCHANGE)
    local_rank: int = idle(-1, "the launcher's environment says it")

    # precision and model
    fp16: bool = refused(False, "a step is too small for half precision: take bf16, or neither")
    bf16_full_eval: bool = refused(False, "what is held out is answered as in training: set bf16")
    fp16_full_eval: bool = refused(False, "what is held out is answered as in training: set bf16")
    tf32: bool | None = refused(None, "it is a setting of torch: torch.backends.cuda.matmul.fp32_precision")
    torch_compile: bool = refused(False, ENGINE_CHOOSES)
    torch_compile_backend: str | None = refused(None, ENGINE_CHOOSES)
    torch_compile_mode: str | None = refused(None, ENGINE_CHOOSES)
    cast_lm_head_to_fp32: bool = refused(False, "the whole model has one dtype: leave bf16 out")
    trust_remote_code: bool = refused(False, "no code from the hub is run; architectures of transformers are")
    disable_dropout: bool = idle(False, "models always run in evaluation mode, without dropout")
    use_cache: bool = idle(False, "answers are always decoded with a cache")
    cache_implementation: str | None = refused(None, ENGINE_CHOOSES)
    use_transformers_continuous_batching: bool = idle(False, "rows that are finished always leave the batch")
    transformers_continuous_batching_config: dict[str, Any] | str | None = idle(None, ENGINE_CHOOSES)
    use_transformers_paged: bool = idle(False, ENGINE_CHOOSES)
    pad_to_multiple_of: int | str | None = idle("auto", ENGINE_CHOOSES)

    # answers
    generation_batch_size: int | None = refused(None, "a generation is answered whole: set prompts_per_generation")
    steps_per_generation: int | None = refused(None, "each population is for one update: nothing is off policy")
    num_generations_eval: int | None = refused(None, "each held-out prompt is answered once")
    max_tool_calling_iterations: int | None = refused(None, NO_TOOLS)
    vllm_mode: str = refused("colocate", NO_SERVER)
    vllm_model_impl: str = refused("vllm", "perturbations are written for vLLM's own layers")
    vllm_enable_sleep_mode: bool = refused(False, "an update happens inside vLLM's workers, which hold the weights")
    vllm_structured_outputs_regex: str | None = refused(None, "no engine restricts answers; let a reward judge them")
    vllm_server_base_url: str | None = refused(None, NO_SERVER)
    vllm_server_host: str = refused("0.0.0.0", NO_SERVER)
    vllm_server_port: int = refused(8000, NO_SERVER)
    vllm_server_timeout: float = refused(240.0, NO_SERVER)
    vllm_group_port: int = refused(51216, NO_SERVER)

    # data
    shuffle_dataset: bool | None = refused(True, "every epoch has an order of its own, which follows from seed")
    remove_unused_columns: bool | None = refused(False, "rewards get every column: remove it from the dataset")
    data_seed: int | None = refused(None, "everything random follows from seed")
    train_sampling_strategy: str = refused("random", "every epoch has a random order")
    length_column_name: str = refused("length", "every epoch has a random order")
    label_names: list[str] | None = refused(None, NO_LOSS)
    ignore_data_skip: bool = refused(False, "which prompts a generation sees follows from seed, also after a resume")
    dataloader_drop_last: bool = idle(False, "epochs follow each other without a gap: no batch is incomplete")
    dataloader_num_workers: int = idle(0, NO_LOADER)
    dataloader_pin_memory: bool = idle(True, NO_LOADER)
    dataloader_persistent_workers: bool = idle(False, NO_LOADER)
    dataloader_prefetch_factor: int | None = idle(None, NO_LOADER)
    dataloader_multiprocessing_context: str | None = idle(None, NO_LOADER)
    dataloader_in_order: bool = idle(True, NO_LOADER)

    # evaluation
    eval_delay: float = refused(0, "the model is measured before training, too: the curve begins there")
    prediction_loss_only: bool = refused(False, NO_LOSS)
    eval_on_start: bool = idle(False, "the model is always measured before training")
    eval_do_concat_batches: bool = idle(True, BY_MEMORY)
    eval_use_gather_object: bool = idle(False, NO_EXCHANGE)
    include_for_metrics: list[str] = refused([], NO_LOSS)
    batch_eval_metrics: bool = refused(False, NO_LOSS)
    load_best_model_at_end: bool = refused(
        False, "the journal has every generation: eggroll-rl export RUN OUT --generation G writes the one you choose"
    )

    # what is kept and shown
    save_only_model: bool = refused(False, "a snapshot is for going on, and has the optimizer's state")
    save_on_each_node: bool = refused(False, "one folder holds a run")
    enable_jit_checkpoint: bool = idle(False, "a run that gets SIGTERM always ends in order and can go on")
    restore_callback_states_from_checkpoint: bool = refused(False, "a callback's state is its own to keep")
    log_on_each_node: bool = idle(True, "the first process logs")
    logging_nan_inf_filter: bool = idle(True, NO_LOSS)
    include_num_input_tokens_seen: str | bool = idle("no", "num_tokens is always logged")
    log_level: str = idle("passive", "it is Python's: logging.getLogger('eggroll_rl').setLevel")
    log_level_replica: str = idle("warning", "the first process logs")
    disable_tqdm: bool | None = idle(None, "there is no tqdm; a run has its own display")
    log_completions: bool = idle(False, ALL_KEPT)
    log_multimodal: bool = idle(True, "there is text alone")
    num_completions_to_print: int | None = idle(None, ALL_KEPT)
    log_unique_prompts: bool = idle(False, ALL_KEPT)
    log_completions_hub_repo: str | None = refused(None, ALL_KEPT)
    trackio_bucket_id: str | None = refused(None, "set it by overrides=['trackers.0.options={...}']")
    trackio_static_space_id: str | None = refused(None, "set it by overrides=['trackers.0.options={...}']")
    hub_strategy: str = refused("end", HUB_AT_END)
    hub_always_push: bool = refused(False, HUB_AT_END)
    hub_token: str | None = refused(None, "no token belongs into a script: `hf auth login`, or HF_TOKEN")
    hub_revision: str | None = refused(None, "a model is pushed to the main branch")
    full_determinism: bool = idle(False, "a run is a function of its recipe in any case")
    skip_memory_metrics: bool = refused(True, "eggroll-rl plan says what a run holds in memory")
    debug: str = refused("", NO_EXCHANGE)

    # of other releases of TRL and transformers
    max_prompt_length: int | None = refused(None, GONE + "no prompt is cut; filter the dataset by length")
    warmup_ratio: float | None = refused(None, GONE + "warmup_steps takes a share below 1")
    evaluation_strategy: str | None = refused(None, GONE + "its name is eval_strategy")
    use_liger_loss: bool | None = refused(None, NO_LOSS)
    vllm_device: str | None = refused(None, GONE + "vLLM runs the model that learns, on its device")
    vllm_guided_decoding_regex: str | None = refused(None, "no engine restricts answers; let a reward judge them")
    wandb_log_unique_prompts: bool | None = refused(None, GONE + ALL_KEPT)
