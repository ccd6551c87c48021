"""Pictures of a run."""

from typing import TYPE_CHECKING

from eggroll_rl.run import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH = 20  # generations


def draw_learning_curve(run: RunFolder) -> None:
    """Reward of the population and held-out accuracy against training time, as ``learning_curve.png``."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=150, layout="constrained")
    plot_curve(axes, run)
    figure.savefig(run.curve)
    plt.close(figure)


def plot_curve(axes: "Axes", run: RunFolder) -> None:
    records = run.metrics()
    rewards = [r for r in records if r.get("reward_mean") is not None]
    minutes = [r["seconds"] / 60 for r in rewards]
    means = [r["reward_mean"] for r in rewards]
    smooth = [
        sum(window) / len(window) for end in range(len(means)) if (window := means[max(0, end + 1 - SMOOTH) : end + 1])
    ]
    axes.plot(minutes, means, color="tab:blue", alpha=0.2, linewidth=0.8)
    axes.plot(minutes, smooth, color="tab:blue", label=f"training reward (mean of {SMOOTH} generations)")
    marks = [r for r in records if "accuracy" in r]
    accuracy = [r["accuracy"] for r in marks]
    spread = [[r["accuracy"] - r["low"] for r in marks], [r["high"] - r["accuracy"] for r in marks]]
    axes.errorbar(
        [r["seconds"] / 60 for r in marks],
        accuracy,
        spread,
        color="tab:orange",
        marker="o",
        capsize=3,
        label=f"held-out accuracy ({marks[0]['n']} problems, Wilson 95 %)" if marks else None,
    )
    axes.set(xlabel="minutes of training", ylabel="reward, accuracy", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
