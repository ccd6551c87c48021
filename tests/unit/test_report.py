"""Pages of runs and comparisons: right numbers, nothing loaded, nothing that a model wrote becomes markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sample_runs import ANSWERS, HOSTILE, write_comparison, write_run

from eggroll_rl.comparison import pages
from eggroll_rl.config import PopulationConfig
from eggroll_rl.data.dataset import Batch
from eggroll_rl.es.population import Population
from eggroll_rl.es.rollout import Completion
from eggroll_rl.es.update import Update
from eggroll_rl.report import draw_learning_curve, write_report
from eggroll_rl.report.drawing import STAND_INS
from eggroll_rl.report.drift import drift
from eggroll_rl.report.series import POINTS, History, smoothed, thinned, time_scale
from eggroll_rl.report.words import LONGEST, duration, interval, plural, setting, share, text
from eggroll_rl.runs.clock import Lap
from eggroll_rl.runs.evaluation import SHOWN, Evaluation
from eggroll_rl.runs.folder import RunFolder
from eggroll_rl.runs.metrics import QUANTILES, entry_of, judged_answers
from eggroll_rl.scoring import Scores
from eggroll_rl.system.errors import UsageError

NAN = float("nan")
LARGEST = 1_500_000  # bytes


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())
        self.lede = next((words for words in self.words if words.startswith("Accuracy")), "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = write_run(tmp_path_factory.mktemp("runs") / "run")
    assert write_report(run.path) == run.report
    return run


@pytest.fixture(scope="module")
def page(run: RunFolder) -> Page:
    return Page(run.report)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder, generations=10)
    pages.write_report(folder)
    return folder


def test_a_run_is_summed_up(run: RunFolder, page: Page) -> None:
    first, *_, last = (record for record in run.metrics() if "accuracy" in record)
    for mark in (first, last):
        assert f"{mark['accuracy']:.1%} [{100 * mark['low']:.1f}\u2013{mark['high']:.1%}]" in page.text
    assert "in 60 generations, 2.0\u00a0min of training" in page.lede
    for fact in (
        f"{60 * 128:,}",
        f"{60 * 128 * 24:,}",
        "128 rollouts each",
        "64.0 per second",
        "1 of 7,680 rewards failed",
    ):
        assert fact in page.text, fact
    for fact in (
        "embedded:rwkv7-countdown",
        "16 members, rank 1, sigma 0.001, antithetic pairs",
        "transformers, float32",
    ):
        assert fact in page.text, fact
    assert "torch 2." in page.text, "no versions"


def test_the_charts_of_a_run(page: Page) -> None:
    titles = ["Against training time", "Against rollouts", "Reward of the members", "Length of answers"]
    titles += ["Size of the update", "Throughput", "Seconds of a generation"]
    assert page.values("aria-label") == titles
    assert page.tags.count("svg") == page.tags.count("figure") == len(titles)
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 0
    references = {value.strip("#") for value in page.values("xlink:href")}
    references |= set(re.findall(r"url\(#([^)]+)\)", " ".join(page.values("clip-path", "style"))))
    assert references <= set(ids)


def test_charts_take_their_colours_and_font_from_the_page(run: RunFolder, page: Page) -> None:
    source = run.report.read_text(encoding="utf-8")
    assert not [colour for colour in STAND_INS.values() if colour in source]
    svg = " ".join(re.findall("<svg.*?</svg>", source, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b|font-family|DejaVu", svg)
    used, defined = set(re.findall(r"var\((--[\w-]+)\)", source)), set(re.findall(r"(--[\w-]+):", source))
    assert {"--series-1", "--series-2", "--muted", "--grid"} <= used <= defined


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_pages_load_nothing_and_run_nothing(kind: str, run: RunFolder, comparison: Path) -> None:
    path = run.report if kind == "run" else comparison / "report.html"
    page, source = Page(path), path.read_text(encoding="utf-8")
    assert not set(page.tags) & {"script", "img", "link", "iframe", "object", "image", "b"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for value in page.values("src", "href", "xlink:href") if not re.match(r"#|[\w./-]+$", value)]
    assert "default-src 'none'" in source
    assert "@import" not in source
    assert "width=device-width, initial-scale=1" in page.values("content")
    assert len(source.encode()) < LARGEST


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_what_a_model_wrote_stays_text(kind: str, run: RunFolder, comparison: Path) -> None:
    path = run.report if kind == "run" else comparison / "report.html"
    words = [words.strip() for words in Page(path).words]
    for answer in ANSWERS:
        shown = answer.encode("utf-8", "replace").decode() or "(nothing)"
        assert words.count(shown) == 2, answer  # before and after, or of both methods
    assert HOSTILE not in path.read_text(encoding="utf-8")


def test_answers_are_marked_right_or_wrong(page: Page) -> None:
    marks = [words for words in page.words if words in ("✓ right", "✗ wrong")]
    assert marks == ["✗ wrong", "✓ right"] * len(ANSWERS)  # in the sample none is right before, all are after


def test_a_comparison_is_summed_up(comparison: Path) -> None:
    page = Page(comparison / "report.html")
    assert page.text.index("EGGROLL & GRPO do not differ <measurably>.") < page.text.index("Methods")
    for fact in (
        "pass@4 75.0%",
        "maj@4 62.5%",
        "1.25",
        "1.23%",
        "9 : 4",
        "+7.8 points -3.1 to +18.7",
        "0.267",
        "999 rollouts in one batch failed",
    ):
        assert fact in page.text, fact
    assert page.values("aria-label") == ["Against training time", "Against rollouts"]
    links = [link for link in page.values("href") if not link.startswith("#")]
    assert links == [f"{method}-{seed}/report.html" for method in ("eggroll", "grpo") for seed in (0, 1)]
    kinds = [next(words for words in Page(comparison / link).words if words.endswith(" run")) for link in links]
    assert kinds == ["EGGROLL run"] * 2 + ["GRPO run"] * 2


def test_a_page_elsewhere_stands_alone(comparison: Path, tmp_path: Path) -> None:
    page = Page(pages.write_report(comparison, tmp_path / "page.html"))
    assert "EGGROLL & GRPO do not differ <measurably>." in page.text
    assert not [link for link in page.values("href") if not link.startswith("#")]


def test_a_run_cut_short_before_its_first_generation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", generations=5)
    run.rewind(1)
    metrics = run.metrics_file.read_bytes()
    run.metrics_file.write_bytes(metrics[: metrics.index(b"\n") + 1] + b'{"generation": 0, "reward_m')
    page = Page(write_report(run.path))
    assert "Accuracy on 64 held-out problems is 25.0%" in page.text
    assert "after 0 generations" in page.text


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", generations=5000)
    assert write_report(run.path).stat().st_size < 400_000


def test_the_learning_curve_is_a_picture(run: RunFolder) -> None:
    draw_learning_curve(run)
    assert run.curve.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_run_is_refused(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UsageError, match=r"is neither a run \(with recipe.yaml and metrics.jsonl\) nor a comparison"):
        write_report(tmp_path)
    with pytest.raises(UsageError, match=r"no folder .*nowhere.*: make it, or choose another --output"):
        write_report(run.path, tmp_path / "nowhere" / "page.html")
    (tmp_path / "compare.json").write_text('{"version": 99}')
    with pytest.raises(UsageError, match="of version 99, and this package reads version 4"):
        pages.write_report(tmp_path)
    (tmp_path / "compare.json").write_text("{")
    with pytest.raises(UsageError, match=r"compare.json cannot be read as a comparison"):
        pages.write_report(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 6, 40])
def test_smoothing_against_a_plain_loop(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size)
    values[2:4] = NAN
    windows = [values[max(0, end - 4) : end + 1] for end in range(size)]
    expected = [window[~np.isnan(window)].mean() if (~np.isnan(window)).any() else NAN for window in windows]
    np.testing.assert_allclose(smoothed(values, 5), expected)


def test_thinning_keeps_the_mean_and_the_ends() -> None:
    values = np.arange(12.0)
    np.testing.assert_array_equal(thinned(values, 12), values)
    np.testing.assert_array_equal(thinned(values, 4), [1.0, 4.0, 7.0, 10.0])
    values[3:6] = NAN
    values[0] = NAN
    np.testing.assert_array_equal(thinned(np.stack([values, values], 1), 4).T[1], [1.5, NAN, 7.0, 10.0])
    assert len(thinned(np.arange(1e5))) == POINTS


def test_the_numbers_behind_the_charts(run: RunFolder) -> None:
    records = [{"generation": 0, "reward_mean": None, "reward_failures": {"crash": 2}, "tokens": 5, "seconds": 1.0}]
    records += [{"generation": 1, "reward_mean": 0.5, "reward_failures": {"crash": 1, "value": 1}, "tokens": 7}]
    history = History(records, [{"generation": 2, "accuracy": 0.25, "seconds": 9.0}], rollouts=10)
    np.testing.assert_array_equal(history.column("reward_mean"), [NAN, 0.5])
    np.testing.assert_array_equal(history.spent("rollouts")[0], [10, 20])
    np.testing.assert_array_equal(history.spent("rollouts")[1], [20])
    np.testing.assert_array_equal(history.spent("seconds")[1], [9.0])
    assert history.failures() == {"crash": 3, "value": 1}
    assert history.total("tokens") == 12
    assert history.quantiles().shape == (2, 0)
    assert [time_scale(seconds) for seconds in (10, 600, 90000)] == [(1, "seconds"), (60, "minutes"), (3600, "hours")]


def test_drift_against_the_weights_as_one_vector(tmp_path: Path) -> None:
    before = {name: torch.randn(size) for name, size in (("a", 30), ("b", 5), ("c", 7))}
    after = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in before.items()}
    for folder, tensors, shards in ((tmp_path / "base", before, ("a", "bc")), (tmp_path / "model", after, ("ab", "c"))):
        folder.mkdir()
        for number, names in enumerate(shards):
            save_file({name: tensors[name] for name in names}, folder / f"{number}.safetensors")
    old, new = (torch.cat(list(tensors.values())) for tensors in (before, after))
    assert drift(str(tmp_path / "base"), tmp_path / "model") == pytest.approx(float((new - old).norm() / old.norm()))
    assert drift(str(tmp_path / "base"), tmp_path / "base") == 0.0
    assert drift(str(tmp_path / "base"), tmp_path / "absent") is None
    assert drift("some/hub-model", tmp_path / "model") is None


def test_what_a_run_keeps_for_its_page(tmp_path: Path) -> None:
    rewards_NP = torch.tensor([[0.0, NAN], [0.5, 0.7], [1.0, 1.0], [NAN, NAN]])
    completions = [[Completion("", (1,), True)] * 2 for _ in rewards_NP]
    update = Update(Population(0, 0, PopulationConfig(size=4)), (0.0,) * 4, 0.1)
    judged = judged_answers(0, Batch(["p", "q"], {}, [0, 1]), completions, Scores(rewards_NP, {}, {}))
    entry = entry_of(update, judged, Lap(1.0, 1.0))
    expected = np.quantile([0.0, 0.6, 1.0], QUANTILES)
    np.testing.assert_allclose(entry.metrics["reward_quantiles"], expected, rtol=1e-6)

    prompts, texts, right = tuple("abcdefgh"), tuple("ABCDEFGH"), (True, False) * 4
    run = RunFolder(tmp_path)
    for generation in (0, 1):
        result = Evaluation(0.5, 0.1, 0.9, 8, right, prompts, texts)
        run.log_evaluation({"generation": generation, "seconds": 1.0, **result.record()})
    assert run.metrics()[1] == {"generation": 1, "seconds": 1.0, **result.summary(), "reward": None}
    first = {"generation": 0, "problem": 0, "prompt": "a", "completion": "A", "correct": True}
    assert run.answers()[0] == first
    assert [answer["problem"] for answer in run.answers()] == [*range(SHOWN)] * 2
    run.rewind(1)
    assert {answer["generation"] for answer in run.answers()} == {0}


def test_words() -> None:
    assert [share(0.2), interval(0.1234, 0.5)] == ["20.0%", "12.3\u201350.0%"]
    assert [duration(seconds) for seconds in (0.5, 99, 150, 7200)] == [
        "0.5\u00a0s",
        "99\u00a0s",
        "2.5\u00a0min",
        "2.0\u00a0h",
    ]
    assert [plural(1, "token"), plural(1200, "token")] == ["1 token", "1,200 tokens"]
    assert setting({"a": None, "b": True, "c": [1, 2], "d": {"e": ""}}) == "b true, c 1, 2, d e "
    assert (
        text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}])
        == "user: Hi\n\nassistant: Yes"
    )
    assert text("x" * LONGEST) == "x" * LONGEST
    assert text("x" * (LONGEST + 5)) == "x" * LONGEST + " … (5 characters more)"
