"""RWKV-7 against the ``rwkv`` package, against ``rwkv7-hf``, and against itself one token at a time.

The checkpoints are written here as BlinkDL's training code names, shapes and orders its tensors, independently of
``eggroll_rl.models.blinkdl``.
"""

import copy
import pickle
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import eggroll_rl.engines.local.fused_rwkv as fused
from eggroll_rl.config import SamplingConfig
from eggroll_rl.engines.local.choice import for_any, for_rwkv
from eggroll_rl.engines.local.engine import LocalEngine
from eggroll_rl.engines.local.fused_rwkv import FusedStep
from eggroll_rl.models.blinkdl import load_pth, read_config, save_pth
from eggroll_rl.models.loading import empty_model, load_config, load_model, load_tokenizer
from eggroll_rl.models.naming import locate_model
from eggroll_rl.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM, wkv7
from eggroll_rl.models.rwkv7.layers import DECAY
from eggroll_rl.models.rwkv7.recurrence import CHUNK
from eggroll_rl.system.errors import UsageError

V = 150  # as many as the tests' tokenizer has tokens
GEOMETRIES = {  # width, head size, layers, inner width, ranks of w, a, v, g
    "heads of 64": (64, 64, 2, 256, 32, 32, 32, 32),
    "three layers": (128, 64, 3, 448, 16, 24, 8, 40),
    "heads of 32": (64, 32, 2, 224, 8, 16, 24, 32),
    "heads of 16": (48, 16, 2, 96, 8, 8, 8, 16),
}
TOKENS = 2 * CHUNK + 7
PROMPTS = ("a", "is 12 in the answer, or is 34 + 56?", "12 + 34 =")

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # which the rwkv package uses


def blinkdl_tensors(geometry: str, vocabulary: int = V, unused: bool = True) -> dict[str, Tensor]:
    """Random weights that keep the network alive: no gate shut, decays from slow to fast, answers that vary."""
    width, size, layers, inner, *ranks = GEOMETRIES[geometry]
    generator = torch.Generator().manual_seed(len(geometry))

    def normal(*shape: int, mean: float = 0.0, std: float = 0.1) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    def matrix(rows: int, columns: int, fan_in: int) -> Tensor:
        return normal(rows, columns, std=fan_in**-0.5)

    z = {"emb.weight": normal(vocabulary, width, std=1.0)}
    for layer in range(layers):
        block = f"blocks.{layer}."
        for norm in ("ln1", "ln2", "ln0") if layer == 0 else ("ln1", "ln2"):
            z[f"{block}{norm}.weight"], z[f"{block}{norm}.bias"] = normal(width, mean=1.0), normal(width)
        for name in "rwkvag":
            z[f"{block}att.x_{name}"] = torch.rand(1, 1, width, generator=generator)
        for name, rank, mean in zip("wavg", ranks, (-2.0, 0.0, 0.5, None), strict=True):
            if name == "v" and layer == 0 and not unused:
                continue
            z[f"{block}att.{name}1"] = matrix(width, rank, width)
            z[f"{block}att.{name}2"] = matrix(rank, width, rank)
            if mean is not None:
                z[f"{block}att.{name}0"] = normal(1, 1, width, mean=mean, std=1.0)
        z[f"{block}att.k_k"] = normal(1, 1, width, mean=0.7)
        z[f"{block}att.k_a"] = normal(1, 1, width, mean=1.0)
        z[f"{block}att.r_k"] = normal(width // size, size)
        for name in ("receptance", "key", "value", "output"):
            z[f"{block}att.{name}.weight"] = matrix(width, width, width)
        z[f"{block}att.ln_x.weight"], z[f"{block}att.ln_x.bias"] = normal(width, mean=1.0), normal(width)
        z[f"{block}ffn.x_k"] = torch.rand(1, 1, width, generator=generator)
        z[f"{block}ffn.key.weight"] = matrix(inner, width, width)
        z[f"{block}ffn.value.weight"] = matrix(width, inner, inner)
    z["ln_out.weight"], z["ln_out.bias"] = normal(width, mean=1.0), normal(width)
    z["head.weight"] = matrix(vocabulary, width, width)
    return z


@pytest.fixture
def new_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def new(geometry: str = "heads of 32", change: Callable[[dict[str, Any]], Any] = dict, **options: Any) -> Path:
        path = tmp_path / "model.pth"
        torch.save(change(blinkdl_tensors(geometry, **options)), path)
        return path

    return new


@pytest.fixture(params=GEOMETRIES)
def checkpoint(request: pytest.FixtureRequest, new_checkpoint: Callable[..., Path]) -> Path:
    return new_checkpoint(request.param)


@pytest.fixture(scope="module")
def reference() -> Callable[[Path], Any]:
    """The ``rwkv`` package's model of a checkpoint, in fp32 on the CPU."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()):
        for name, value in {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}.items():
            patch.setenv(name, value)
        from rwkv.model import RWKV_x070

    def load(path: Path) -> Any:
        with redirect_stdout(StringIO()):
            return RWKV_x070(str(path.with_suffix("")), "cpu fp32")

    return load


def some_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, V, shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_logits_equal_the_rwkv_package(checkpoint: Path, reference: Callable[[Path], Any]) -> None:
    theirs, ours, ids = reference(checkpoint), load_pth(checkpoint), some_tokens(TOKENS + 6)
    expected, their_state = theirs.forward(ids[:TOKENS].tolist(), None, full_output=True)
    outputs = ours(ids[None, :TOKENS])
    close(outputs.logits[0], expected)
    for token in ids[TOKENS:]:  # on from the sequence's state, token by token
        expected, their_state = theirs.forward([token.item()], their_state)
        outputs = ours(token.view(1, 1), past_key_values=outputs.past_key_values)
        close(outputs.logits[0, 0], expected)

    one_by_one, state, their_state = [], None, None
    for token in ids:  # from the first token on
        expected, their_state = theirs.forward([token.item()], their_state)
        outputs = ours(token.view(1, 1), past_key_values=state)
        state = outputs.past_key_values
        close(outputs.logits[0, 0], expected)
        one_by_one.append(expected)
    close(ours(ids[None]).logits[0], torch.stack(one_by_one))


@torch.no_grad()
def test_the_fused_step_equals_the_rwkv_package(checkpoint: Path, reference: Callable[[Path], Any]) -> None:
    theirs, ids = reference(checkpoint), some_tokens(3, 10)
    step = FusedStep(load_pth(checkpoint))
    state, their_states = step.new_state(3), [None] * 3
    for token_M in ids.unbind(1):
        logits_MV = step(token_M.contiguous(), state, None)
        for row, token in enumerate(token_M.tolist()):
            expected, their_states[row] = theirs.forward([token], their_states[row])
            close(logits_MV[row], expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.no_grad()
def test_logits_equal_rwkv7_hf(geometry: str) -> None:
    """Its own converter reads the checkpoint; its parameters then are ours by name, and padded rows agree."""
    converter = pytest.importorskip("rwkv7_hf.converter")
    tensors = blinkdl_tensors(geometry)
    config = converter.infer_config(tensors, "float32", "reference", False)
    theirs = converter.build_template_model(config, torch.float32).eval()
    state = theirs.state_dict()
    for name, tensor in tensors.items():
        target, transposed = converter.translate_name(name, config.num_hidden_layers)
        if target:
            state[target].copy_((tensor.T if transposed else tensor).reshape(state[target].shape))
    own = {
        name: getattr(config, name) for name in ("hidden_size", "num_hidden_layers", "head_dim", "intermediate_size")
    }
    own |= {name: value for name, value in vars(config).items() if name.endswith("_low_rank_dim")}
    ours = RWKV7ForCausalLM(RWKV7Config(vocab_size=V, **own)).eval()
    ours.load_state_dict(state)

    ids, mask = some_tokens(3, TOKENS), torch.ones(3, TOKENS, dtype=torch.long)
    mask[1, :3], mask[2, : CHUNK + 2] = 0, 0
    expected, outputs = theirs(ids, attention_mask=mask), ours(ids, attention_mask=mask)
    close(outputs.logits[mask.bool()], expected.logits[mask.bool()])
    for step in range(3):
        token_B1 = some_tokens(3, 1, seed=step)
        expected = theirs(token_B1, past_key_values=expected.past_key_values)
        outputs = ours(token_B1, past_key_values=outputs.past_key_values)
        close(outputs.logits, expected.logits)


def recurrence(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The docstring of ``wkv7``, a token at a time, in float64."""
    r, log_decay, k, v, a, b, state = (x.double() for x in inputs)
    outputs = []
    for t in range(r.shape[1]):
        decay = torch.diag_embed(log_decay[:, t].exp()) + b[:, t, :, :, None] * a[:, t, :, None, :]
        state = decay @ state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((state.mT @ r[:, t, :, :, None])[..., 0])
    return torch.stack(outputs, dim=1), state


def wkv_inputs(tokens: int, pads: int = 0, strongest: bool = False) -> list[Tensor]:
    """r, log_decay, k, v, a, b [2, T, 3, 8] and a state; the first row starts with ``pads`` masked tokens."""
    torch.manual_seed(tokens)
    r, k, v, kk = torch.randn(4, 2, tokens, 3, 8)
    log_decay = DECAY * (torch.ones(2, tokens, 3, 8) if strongest else torch.rand(2, tokens, 3, 8))
    mask = torch.ones(2, tokens, 1, 1)
    mask[0, :pads] = 0
    kk = F.normalize(kk, dim=-1) * mask
    inputs = [r, log_decay * mask, k * mask, v, -kk, kk * torch.rand(2, tokens, 3, 8), torch.randn(2, 3, 8, 8)]
    return [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize("pads", [0, 1, CHUNK, CHUNK + 3])
@pytest.mark.parametrize("tokens", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_chunks_equal_the_recurrence(tokens: int, pads: int) -> None:
    inputs = wkv_inputs(tokens, pads)
    for actual, expected in zip(wkv7(*inputs), recurrence(*inputs), strict=True):
        torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)


def test_padding_leaves_the_state_as_it_was() -> None:
    *_, state = inputs = wkv_inputs(CHUNK + 3, CHUNK + 3)
    assert torch.equal(wkv7(*inputs)[1][0], state[0])


@pytest.mark.parametrize("strongest", [False, True])
def test_gradients_of_chunks_equal_those_of_the_recurrence(strongest: bool) -> None:
    inputs = wkv_inputs(2 * CHUNK + 5, 3, strongest)
    gradients = []
    for function in (wkv7, recurrence):
        y, state = function(*inputs)
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + state.square().sum() / 10
        gradients.append(torch.autograd.grad(loss, inputs))
    for actual, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_gradients_of_the_model_equal_those_of_its_recurrent_form(new_checkpoint: Callable[..., Path]) -> None:
    model, ids = load_pth(new_checkpoint("heads of 16")), some_tokens(2, CHUNK + 5)
    model(ids, labels=ids).loss.backward()
    of_sequence = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    state, logits = None, []
    for token_B in ids.unbind(1):
        outputs = model(token_B[:, None], past_key_values=state)
        state = outputs.past_key_values
        logits.append(outputs.logits)
    F.cross_entropy(torch.cat(logits, 1)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-5, name
        torch.testing.assert_close(of_sequence[name], parameter.grad, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_padded_sequences_equal_their_tokens_one_by_one(checkpoint: Path) -> None:
    model, ids = load_pth(checkpoint), some_tokens(4, TOKENS)
    mask, pads = torch.ones_like(ids), (0, 1, CHUNK, CHUNK + 3)
    for row, count in enumerate(pads):
        mask[row, :count] = 0
    padded = model(ids, attention_mask=mask)
    for row, count in enumerate(pads):
        state = None
        for position in range(count, TOKENS):
            outputs = model(ids[row, position].view(1, 1), past_key_values=state)
            state = outputs.past_key_values
            close(padded.logits[row, position], outputs.logits[0, 0])
        for layer in range(model.config.num_hidden_layers):
            for kind in ("att_shift_BD", "ffn_shift_BD", "wkv_BHKK"):
                expected = getattr(state, kind)[layer][0]
                torch.testing.assert_close(
                    getattr(padded.past_key_values, kind)[layer][row], expected, rtol=1e-4, atol=1e-4
                )


def answer(ids: list[int]) -> list[int]:
    """What comes before the end token."""
    return ids[: ids.index(0)] if 0 in ids else ids


@torch.no_grad()
def test_padding_and_engines_change_no_completion(
    checkpoint: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = load_pth(checkpoint), {"max_new_tokens": 12, "do_sample": False}
    encoded = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    expected = [answer(model.generate(ids[None], **options)[0, len(ids) :].tolist()) for ids in encoded]
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)

    batch = tokenizer(list(PROMPTS), padding=True, padding_side="left", return_tensors="pt")
    assert 0 in batch["attention_mask"]
    padded = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    assert [answer(row) for row in padded[:, batch["input_ids"].shape[1] :].tolist()] == expected

    for kind, step_prompts_from in ((for_any, 0), (for_rwkv, 1), (for_rwkv, 1000)):
        monkeypatch.setattr(fused, "STEP_PROMPTS_FROM", step_prompts_from)
        (completions,) = LocalEngine(model, tokenizer, choice=kind).generate(PROMPTS, SamplingConfig(max_new_tokens=12))
        assert [list(completion.token_ids) for completion in completions] == expected


@torch.no_grad()
def test_weights_in_bfloat16_keep_their_state_in_fp32(checkpoint: Path) -> None:
    model = load_pth(checkpoint, torch.bfloat16)
    exact, ids = copy.deepcopy(model).float(), some_tokens(2, TOKENS)
    outputs, expected = model(ids), exact(ids)
    for tokens in (ids[:, :1], ids[:, 1:2]):
        state = outputs.past_key_values
        assert {tensor.dtype for tensor in state.wkv_BHKK} == {torch.float32}
        assert {tensor.dtype for tensor in state.att_shift_BD + state.ffn_shift_BD} == {torch.bfloat16}
        difference = (outputs.logits.float() - expected.logits).square().mean().sqrt()
        assert difference < 0.05 * expected.logits.std()
        outputs = model(tokens, past_key_values=state)
        expected = exact(tokens, past_key_values=expected.past_key_values)


def identical(first: Path, second: Path) -> bool:
    """Names and their order, types, shapes and every bit."""
    one, two = torch.load(first), torch.load(second)
    return list(one) == list(two) and all(
        tensor.dtype == two[name].dtype
        and tensor.shape == two[name].shape
        and torch.equal(tensor.flatten().view(torch.uint8), two[name].flatten().view(torch.uint8))
        for name, tensor in one.items()
    )


def alphabetical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(tensors.items()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unused", [True, False])
@pytest.mark.parametrize("order", [dict, alphabetical])
def test_a_checkpoint_survives_the_round_trip_to_the_bit(
    new_checkpoint: Callable[..., Path], tmp_path: Path, dtype: torch.dtype, unused: bool, order: Any
) -> None:
    path = new_checkpoint(
        change=lambda tensors: order({name: tensor.to(dtype) for name, tensor in tensors.items()}), unused=unused
    )
    model, folder = load_pth(path), tmp_path / "folder"
    assert model.dtype == dtype
    assert not [name for name, _ in model.named_parameters() if "layers.0" in name and "v_lora" in name]
    save_pth(model, tmp_path / "again.pth")
    assert identical(path, tmp_path / "again.pth")
    assert (tmp_path / "again.pth").stat().st_size < 1.1 * path.stat().st_size

    model.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded(some_tokens(1, 20)).logits, model(some_tokens(1, 20)).logits)
    save_pth(loaded, tmp_path / "from_folder.pth")
    assert identical(path, tmp_path / "from_folder.pth")


@torch.no_grad()
def test_another_epsilon_of_the_head_norm_is_absorbed(
    new_checkpoint: Callable[..., Path], tmp_path: Path, reference: Callable[[Path], Any]
) -> None:
    model, ids = load_pth(new_checkpoint("heads of 16")), some_tokens(1, TOKENS)
    model.config.head_norm_eps = 16e-3
    for block in model.model.layers:
        block.attn.g_norm.eps = 16e-3
    expected = model(ids).logits[0]
    save_pth(model, tmp_path / "absorbed.pth")
    close(reference(tmp_path / "absorbed.pth").forward(ids[0].tolist(), None, full_output=True)[0], expected)
    close(load_pth(tmp_path / "absorbed.pth")(ids).logits[0], expected)
    assert not torch.allclose(load_pth(tmp_path / "model.pth")(ids).logits[0], expected, atol=1e-2)


def failure(function: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as error:
        function()
    message = str(error.value)
    assert "\n" not in message
    return message


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def with_(**tensors: Any) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda others: others | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def older(*mixer: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    names = ("emb.weight", "blocks.0.ln0.weight", *(f"blocks.0.att.{name}" for name in mixer), "head.weight")
    return lambda _: {name: torch.zeros(4) for name in names}


FAULTS = {
    "RWKV-4": (older("time_decay", "time_first", "time_mix_k", "key.weight"), "is an RWKV-4 checkpoint, and only"),
    "RWKV-5": (older("time_mix_g", "time_faaaa", "ln_x.weight"), "is an RWKV-5 checkpoint, and only"),
    "RWKV-6": (older("time_maa_w1", "time_faaaa", "ln_x.weight"), "is an RWKV-6 checkpoint, and only"),
    "no geometry": (without("blocks.0.att.r_k", "emb.weight"), "it has no matrix emb.weight, blocks.0.att.r_k; give"),
    "lacking": (
        without("blocks.1.att.v2", "ln_out.bias"),
        "it lacks blocks.1.att.v2, ln_out.bias; download it again",
    ),
    "a gap between blocks": (
        lambda tensors: {name.replace("blocks.1.", "blocks.2."): tensor for name, tensor in tensors.items()},
        "it lacks blocks.1.ln1.weight, blocks.1.ln1.bias, blocks.1.ln2.weight, blocks.1.ln2.bias and 29 more; it has",
    ),
    "unknown": (with_(blocks__0__ffn__s_emb__weight=torch.zeros(2, 2)), "has the unknown blocks.0.ffn.s_emb.weight;"),
    "misshapen": (
        with_(blocks__1__att__w2=torch.zeros(8, 63), blocks__1__ffn__x_k=torch.zeros(64)),
        "it has misshapen blocks.1.att.w2 (8, 63), not (8, 64), blocks.1.ffn.x_k (64,), not (1, 1, 64); download",
    ),
    "uneven heads": (with_(blocks__0__att__r_k=torch.zeros(3, 20)), "width of 64, which (3, 20) heads do not fill;"),
    "quantised": (
        with_(blocks__1__ffn__key__weight=torch.zeros(224, 64, dtype=torch.uint8)),
        "it has quantised blocks.1.ffn.key.weight; download",
    ),
    "nested": (lambda tensors: {"state_dict": tensors}, "holds no named tensors; give the state_dict"),
    "a list": (lambda tensors: list(tensors.values()), "holds no named tensors; give the state_dict"),
    "numbered": (lambda tensors: dict(enumerate(tensors.values())), "holds no named tensors; give the state_dict"),
    "empty": (lambda tensors: {}, "holds no named tensors; give the state_dict"),
    "code": (lambda tensors: {"emb.weight": Path("/")}, "is truncated or no PyTorch checkpoint; download it again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_rwkv7_is_refused_by_name(new_checkpoint: Callable[..., Path], fault: str) -> None:
    change, message = FAULTS[fault]
    path = new_checkpoint(change=change)
    for function in (load_pth, read_config, load_config, load_model, empty_model, load_tokenizer):
        found = failure(lambda function=function: function(str(path)))
        assert found.startswith(str(path))
        assert message in found


def test_damaged_files_are_refused(new_checkpoint: Callable[..., Path]) -> None:
    path = new_checkpoint()
    whole = path.read_bytes()
    damaged = [whole[: len(whole) * part // 8] for part in range(8)]
    damaged += [
        b"<!DOCTYPE html>",
        b"PK\x03\x04",
        pickle.dumps({"emb.weight": 1}),
        whole[:-1],
        whole.replace(b"emb", b"e\xffb"),
    ]
    for content in damaged:
        path.write_bytes(content)
        message = failure(lambda: load_pth(path))
        assert message.startswith(f"{path} is truncated or no PyTorch checkpoint; download it again")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for function in (locate_model, load_config, load_model, load_tokenizer, empty_model, load_pth):
        message = failure(lambda function=function: function(str(tmp_path / "nowhere.pth")))
        assert message == f"no file '{tmp_path}/nowhere.pth'; give the path of an RWKV-7 .pth checkpoint"


def test_what_a_checkpoint_cannot_hold_and_files_that_exist_are_refused(
    new_checkpoint: Callable[..., Path], tmp_path: Path, new_model: Callable[..., PreTrainedModel]
) -> None:
    path = new_checkpoint()
    model, before = load_pth(path), path.read_bytes()
    assert "exists and is never overwritten" in failure(lambda: save_pth(model, path))
    assert path.read_bytes() == before
    assert "does not end in .pth" in failure(lambda: save_pth(model, tmp_path / "model.bin"))
    llama = new_model("llama")
    assert "and this is a LlamaForCausalLM" in failure(lambda: save_pth(llama, tmp_path / "new.pth"))
    model.config.norm_eps = 1e-6
    assert "this one has 1e-06" in failure(lambda: save_pth(model, tmp_path / "new.pth"))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


@torch.no_grad()
def test_a_checkpoint_is_a_model_by_name(new_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = new_checkpoint("heads of 16", vocabulary=65536)
    name, own = str(path), load_pth(path)
    assert locate_model(name) == name
    config = load_config(name)
    geometry = ("vocab_size", "hidden_size", "head_dim", "num_hidden_layers", "intermediate_size", "head_norm_eps")
    assert [getattr(config, key) for key in geometry] == [65536, 48, 16, 2, 96, 64e-5]
    shapes = {key: parameter.shape for key, parameter in own.named_parameters()}
    assert {key: parameter.shape for key, parameter in empty_model(name).named_parameters()} == shapes
    model, tokenizer = load_model(name, torch.bfloat16)
    assert not model.training
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(model.parameters(), own.parameters(), strict=True))
    assert (tokenizer.padding_side, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("left", 0, 0)
    assert tokenizer("Hello\n\n")["input_ids"] == [33155, 261]

    LocalEngine(own, tokenizer).save(tmp_path / "run" / "model")
    again, its_tokenizer = load_model(str(tmp_path / "run"))
    assert type(its_tokenizer) is type(tokenizer)
    assert its_tokenizer("1+2 = \U0001f95a")["input_ids"] == tokenizer("1+2 = \U0001f95a")["input_ids"]
    ids = some_tokens(1, 8)
    assert torch.equal(again(ids).logits, own(ids).logits)


def test_a_vocabulary_that_is_not_world(new_checkpoint: Callable[..., Path]) -> None:
    path = new_checkpoint()
    assert "has a vocabulary of 150, too few for the RWKV World tokenizer" in failure(lambda: load_tokenizer(str(path)))
