"""Where matrices are in vLLM's layers, against vLLM's own weight loaders, rank by rank; no engine runs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

from eggroll_rl.config import OptimizerConfig, PopulationConfig
from eggroll_rl.engines.vllm.adapters import RANKS
from eggroll_rl.engines.vllm.layers import Int8Layer, fused, multiplies_by, write_weight
from eggroll_rl.engines.vllm.shards import Checkpoint, Unplaced, regions
from eggroll_rl.engines.vllm.window import Parts, window_bytes, window_views
from eggroll_rl.es.int8 import quantise
from eggroll_rl.es.noise import Noise
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Factors
from eggroll_rl.es.population import Population
from eggroll_rl.es.tensors import Piece, Spec
from eggroll_rl.es.update import GradientLearner, Update
from eggroll_rl.models.int8 import quantisation_config

WIDTH, HEAD = 24, 8
LAYERS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, int]]]] = {
    "column": (lambda **options: ColumnParallelLinear(WIDTH, 32, bias=False, **options), {"": (32, WIDTH)}),
    "row": (lambda **options: RowParallelLinear(32, WIDTH, bias=False, **options), {"": (WIDTH, 32)}),
    "merged": (
        lambda **options: MergedColumnParallelLinear(WIDTH, [40, 40], bias=False, **options),
        {"0": (40, WIDTH), "1": (40, WIDTH)},
    ),
    "heads": (
        lambda **options: QKVParallelLinear(WIDTH, HEAD, 8, 4, bias=False, **options),
        {"q": (64, WIDTH), "k": (32, WIDTH), "v": (32, WIDTH)},
    ),
    "shared heads": (
        lambda **options: QKVParallelLinear(WIDTH, HEAD, 8, 2, bias=False, **options),
        {"q": (64, WIDTH), "k": (16, WIDTH), "v": (16, WIDTH)},
    ),
    "replicated": (lambda **options: ReplicatedLinear(WIDTH, 8, bias=False, **options), {"": (8, WIDTH)}),
}


@pytest.fixture
def rank_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """``rank_of(rank, ranks)``: layers made from then on are that rank's."""

    def pretend(rank: int, ranks: int) -> None:
        monkeypatch.setattr(linear, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(linear, "get_tensor_model_parallel_world_size", lambda: ranks)
        monkeypatch.setattr("vllm.model_executor.parameter.get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr("vllm.model_executor.parameter.get_tensor_model_parallel_world_size", lambda: ranks)

    with set_current_vllm_config(VllmConfig()):
        yield pretend


def load_as_vllm_does(parameter: Any, tensors: dict[str, Tensor]) -> None:
    for child, tensor in tensors.items():
        shard = (int(child) if child.isdigit() else child,) if child else ()
        parameter.weight_loader(parameter, tensor, *shard)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_parts_are_those_that_vllm_loads(
    rank_of: Callable[[int, int], None], tmp_path: Path, kind: str, ranks: int
) -> None:
    """And what is written in place, or packed again, is served."""
    build, shapes = LAYERS[kind]
    torch.manual_seed(0)
    matrices = {child: torch.randn(shape) for child, shape in shapes.items()}
    save_file({f"{child}.weight": matrix for child, matrix in matrices.items()}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    whole = {
        f"{child}.weight": EvolvedParameter(f"{child}.weight", shape, "lowrank") for child, shape in shapes.items()
    }
    specs = {name: Spec(torch.float32, parameter.shape) for name, parameter in whole.items()}
    pieces = [Piece(name, 0, spec.rows) for name, spec in specs.items()]
    window = torch.full((window_bytes(pieces, specs),), 255, dtype=torch.uint8)
    for rank in range(ranks):
        rank_of(rank, ranks)
        layer = build()
        load_as_vllm_does(layer.weight, matrices)
        found = regions(layer, [checkpoint.shape(f"{child}.weight") for child in shapes])
        named = list(zip((f"{child}.weight" for child in shapes), found, strict=True))
        weight = fused(layer, named, checkpoint)
        assert torch.equal(weight, layer.weight)

        address = layer.weight.data_ptr()
        write_weight(layer, 2 * weight)  # the way on a GPU: CUDA graphs hold the address
        assert torch.equal(layer.weight, 2 * weight)
        assert layer.weight.data_ptr() == address
        layer.quant_method.process_weights_after_loading(layer)
        assert multiplies_by(layer, 2 * weight)
        assert not multiplies_by(layer, weight)
        write_weight(layer, weight)
        assert multiplies_by(layer, weight)

        parts = {name: region.of(whole[name]) for name, region in named}
        Parts({name: weight[r.place : r.place + r.shape[0]] for name, r in named}, parts, whole).copy(
            window, pieces, into_window=True
        )
    for matrix, rows in zip(matrices.values(), window_views(window, pieces, specs), strict=True):
        assert torch.equal(rows, matrix)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_integers_are_served_as_they_are_learnt(
    rank_of: Callable[[int, int], None], tmp_path: Path, kind: str, ranks: int
) -> None:
    """A rank's part of them is what vLLM loads, and is packed anew after each change."""
    build, shapes = LAYERS[kind]
    torch.manual_seed(0)
    matrices = {child: quantise(torch.randn(shape)) for child, shape in shapes.items()}
    stored = {f"{child}.weight": q for child, (q, _) in matrices.items()}
    stored |= {f"{child}.weight_scale": scale for child, (_, scale) in matrices.items()}
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint, cpu = Checkpoint(tmp_path), torch.device("cpu")
    for rank in range(ranks):
        rank_of(rank, ranks)
        config = CompressedTensorsConfig.from_config(quantisation_config([], "int8"))
        layer = build(quant_config=config, prefix="layer")
        load_as_vllm_does(layer.weight, {child: q for child, (q, _) in matrices.items()})
        load_as_vllm_does(layer.weight_scale, {child: scale for child, (_, scale) in matrices.items()})
        found = regions(layer, [checkpoint.shape(f"{child}.weight") for child in shapes])
        named = list(zip((f"{child}.weight" for child in shapes), found, strict=True))
        own = Int8Layer(None, layer, named, checkpoint, cpu)
        assert torch.equal(own.part().q_OI, layer.weight)
        assert torch.equal(own.part().scale_O1, layer.weight_scale)
        layer.quant_method.process_weights_after_loading(layer)
        assert own.is_served(cpu, torch.float32)
        for name, _ in named:
            own.tensors()[name].copy_(stored[name].roll(1, 0))
        assert not own.is_served(cpu, torch.float32)
        own.publish(torch.float32)
        assert own.is_served(cpu, torch.float32)


def test_what_is_placed_otherwise_is_refused(rank_of: Callable[[int, int], None]) -> None:
    rank_of(0, 2)
    with pytest.raises(Unplaced, match="of other parts"):  # fused in the checkpoint, and so in other pieces on a rank
        regions(LAYERS["heads"][0](), [(128, WIDTH)])
    with pytest.raises(Unplaced, match="of other parts"):
        regions(LAYERS["column"][0](), [(12, WIDTH)])
    with pytest.raises(Unplaced, match="in a Linear"):
        regions(torch.nn.Linear(4, 4), [(4, 4)])
    rank_of(0, 1)
    assert regions(LAYERS["heads"][0](), [(128, WIDTH)])[0].shape == (128, WIDTH)


@pytest.mark.parametrize("noise", ["normal", "rademacher"])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_shard_has_its_part_of_the_noise_and_of_the_step(rank: int, noise: Any) -> None:
    whole = EvolvedParameter("model.layers.0.mlp.up_proj.weight", (13, 10), "lowrank")
    shards = [
        EvolvedParameter(whole.name, (5, 10), "lowrank", (3, 0)),
        EvolvedParameter(whole.name, (13, 3), "lowrank", (0, 7)),
    ]
    config = PopulationConfig(size=10, rank=rank, noise=noise)
    population = Population(7, 2, config)
    torch.manual_seed(0)
    matrix = torch.randn(whole.shape)

    def after_steps(parameter: EvolvedParameter, part: Tensor) -> Tensor:
        source = Noise(7, noise, rank=rank)
        learner = GradientLearner({whole.name: part.clone()}, [parameter], OptimizerConfig(), source)
        for _ in range(3):
            learner.step(Update(population, (1.0, -0.5, 2.0, 0.0, -1.5, 0.25, 0.5, -1.0, 0.75, 1.25), 0.1))
        return learner.masters[whole.name]

    expected = after_steps(whole, matrix)
    for shard in shards:
        rows, columns = (slice(start, start + size) for start, size in zip(shard.offset, shard.shape, strict=True))
        drawn = Noise(7, noise, rank=rank).draw([shard], 2, range(1, 4))[whole.name]
        every = Noise(7, noise, rank=rank).draw([whole], 2, range(1, 4))[whole.name]
        assert isinstance(drawn, Factors)
        assert isinstance(every, Factors)
        assert torch.equal(drawn.A_KOr, every.A_KOr[:, rows])
        assert torch.equal(drawn.B_KIr, every.B_KIr[:, columns])
        torch.testing.assert_close(
            after_steps(shard, matrix[rows, columns]), expected[rows, columns], rtol=1e-5, atol=1e-6
        )


def test_the_ranks_that_vllm_takes() -> None:
    taken = [rank for rank in range(1, 1025) if _takes(rank)]
    assert tuple(taken) == RANKS


def _takes(rank: int) -> bool:
    try:
        LoRAConfig(max_lora_rank=rank)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True
