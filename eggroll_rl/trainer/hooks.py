"""Methods of trainers of TRL and transformers that a class may redefine there, and that no run by evolution calls."""

from eggroll_rl.system.errors import UsageError

HOOKS = frozenset(
    [
        *("compute_loss", "_compute_loss", "training_step", "prediction_step", "evaluation_loop", "_prepare_inputs"),
        *("create_optimizer", "create_scheduler", "create_optimizer_and_scheduler", "get_batch_samples"),
        *("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader", "_get_train_sampler"),
        *("_generate", "_generate_single_turn", "_generate_and_score_completions", "_calculate_rewards"),
        *("_get_per_token_logps_and_entropies", "_inner_training_loop", "_save_checkpoint", "_load_best_model"),
    ]
)


def refuse_hooks(kind: type) -> None:
    """Raise UsageError where a class redefines a method that would never be called."""
    idle = sorted(HOOKS & vars(kind).keys())
    if idle:
        raise UsageError(
            f"class {kind.__name__} redefines {', '.join(idle)}, which no run by evolution strategies calls: there are "
            "no losses and no batches of tokens; a reward, a callback or an engine of your own may take its place"
        )
