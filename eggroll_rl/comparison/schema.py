"""What ``compare.json`` holds: the equal-time comparison of methods, whole. Shares are in [0, 1], times in seconds."""

from typing import Any, TypedDict

VERSION = 4


class AccuracyPoint(TypedDict):
    """Held-out accuracy of one run at one moment: after ``generation`` generations (GRPO: batches of rollouts)."""

    mark: int  # k: measured when k/marks of the budget were spent; 0 is the base model, ``marks`` the final model
    generation: int
    seconds: float  # of training until then, evaluation excluded
    rollouts: int  # answers sampled for training until then
    accuracy: float
    low: float  # Wilson 95 %
    high: float
    n: int


class Run(TypedDict):
    """One method with one seed."""

    method: str  # eggroll, grpo, openes, random or randopt
    seed: int
    folder: str  # of the run, relative to compare.json: recipe.yaml, metrics.jsonl, samples.jsonl, model/
    evaluations: list[AccuracyPoint]
    accuracy: float  # of the final model, whose answers are as in the run's evaluations
    low: float
    high: float
    n: int
    correct: list[
        int | None
    ]  # of the final model, for each held-out problem in the same order: 1, 0, or None: not judged
    pass_at_k: dict[str, float]  # "pass@1", "pass@2", ...: unbiased, from samples of the final model
    maj_at_k: dict[str, float]  # "maj@8": whether what most of the samples say is right
    generations: int
    updates: int  # optimizer steps
    rollouts: int
    tokens: int  # generated in training
    seconds_training: float
    seconds_loading: float  # imports, data, model, compilation: before training, not part of the budget
    seconds_total: float  # wall clock of the training process, evaluations and saving included
    samples_per_second: float  # rollouts / seconds_training
    tokens_per_second: float
    peak_memory_gib: float  # resident set of the process, or torch's peak on the GPU
    drift: float | None  # ||W - W0|| / ||W0|| over all parameters; None: the base has no safetensors at hand
    flops: float  # of training (``comparison.flops``)
    retention: list[float]  # accuracy on what is not trained, at each evaluation; empty: not measured
    reward_failures: int


class Trial(TypedDict):
    """One setting of one method that was tried before the comparison, on validation problems."""

    method: str
    settings: dict[str, Any]  # recipe key -> value
    folder: str
    seed: int
    minutes: float
    accuracy: float | None  # None, as are the next three: the run failed
    low: float | None
    high: float | None
    n: int | None
    chosen: bool


class Probe(TypedDict):
    """A short run that measured the memory of a batch."""

    method: str
    settings: dict[str, Any]
    rollouts: int  # in one batch
    peak_memory_gib: float | None  # None: the run failed
    in_time: bool  # two generations took less than the minutes
    chosen: bool


class Point(TypedDict):
    """A method's learning curve at one mark, over its seeds."""

    mark: int
    seconds: float  # mean over the seeds
    rollouts: float  # mean over the seeds
    accuracy: float  # all answers of all seeds pooled
    low: float  # lowest seed
    high: float  # highest seed


class Summary(TypedDict):
    """A method over its seeds: means, but for the pooled accuracy and the largest peak."""

    method: str
    label: str  # for people
    settings: dict[str, Any]  # what this method's runs have beside the common recipe: recipe key -> value
    note: str  # what a reader must know, such as another engine; empty: nothing
    accuracy: float  # over the problems that every run of the comparison was judged on
    low: float  # 95 % over seeds and problems (``significance.Spread``); of one seed Wilson's, over problems alone
    high: float
    n: int  # answers pooled: seeds x problems that every run of the comparison was judged on
    seed_accuracies: list[float]
    base_accuracy: float
    pass_at_k: dict[str, float]
    maj_at_k: dict[str, float]
    generations: float
    updates: float
    rollouts: float
    tokens: float
    seconds_training: float
    seconds_loading: float
    samples_per_second: float
    tokens_per_second: float
    peak_memory_gib: float
    drift: float | None
    flops: float
    retention: float | None  # at the end, None: not measured
    curve: list[Point]


class PairedTest(TypedDict):
    """Two methods on the same problems: over all their seeds (``significance.Estimate``), or of one seed the exact
    McNemar test of their final models, which tells of these two models and not of the methods."""

    first: str
    second: str
    seed: int | None  # None: all seeds
    only_first: int  # answers that only the first has right
    only_second: int
    n: int  # answers of each: problems, times seeds where it is all of them
    difference: float  # accuracy of the first - accuracy of the second
    low: float | None  # 95 % of the difference, for all pairs together; None: of one seed
    high: float | None
    p_value: float  # two-sided; over all seeds corrected for the number of pairs, and 1 where there is one seed


class Comparison(TypedDict):
    """A comparison as ``compare.json`` holds it."""

    version: int
    recipe_name: str
    recipe: dict[str, Any]  # common to all methods
    minutes: float
    marks: int  # parts of the budget at whose ends all runs are evaluated
    seeds: list[int]
    methods: list[str]
    memory_gib: float | None  # the second budget, None: not asked for
    environment: dict[str, Any]  # see eggroll_rl.system.environment
    probes: list[Probe]
    trials: list[Trial]
    runs: list[Run]
    summaries: list[Summary]
    tests: list[PairedTest]
    conclusion: str  # a plain sentence or two
