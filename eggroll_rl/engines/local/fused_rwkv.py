"""RWKV-7 populations with a fused decoding step.

A step of the Hugging Face model is about a hundred small passes over the rows. Here it is a list of C kernels
(``fused_rwkv.c``): norm, token shift and mixing; the recurrence in place with all that surrounds it; the activations;
the products (``product.h``). Each core takes blocks of rows through the whole list, so that the cores meet once a token
and what is between two products stays in a core's cache. Each row's perturbation is part of the kernels, so a
population costs what reading its noise costs: that of matrices, and of the vectors of norms and biases. The fp32
matrices are held a second time, in the order in which the products read them. Where the head alone is perturbed, rows
that have read the same tokens are read as one.

With weights in bf16 or int8 the products are torch's, which all cores share; state, noise and all between the products
stay fp32.

Left to the Hugging Face model and its hooks: the prompts of small batches in fp32. Other devices than the CPU, dense
noise of other tensors and machines without a C compiler have other decoders.

Legend: M rows, T tokens, V vocabulary, D width, K head size.
"""

from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from eggroll_rl.engines.local.eager import EagerDecoder
from eggroll_rl.engines.local.fused_plan import ORDER, StepPlan
from eggroll_rl.engines.local.prefixes import Prefixes
from eggroll_rl.es.int8 import Int8Linear
from eggroll_rl.es.layers import PopulationLayers
from eggroll_rl.es.parameters import EvolvedParameter
from eggroll_rl.es.perturbation import Members
from eggroll_rl.models.int8 import is_int8
from eggroll_rl.models.rwkv7 import RWKV7ForCausalLM, RWKV7State
from eggroll_rl.system.native import load_kernels

VECTORS = ("*.attn_norm.*", "*.ffn_norm.*", "model.norm.*", "*.lora.2.bias")  # that may have dense noise
STEP_PROMPTS_FROM = 64  # rows from which fused steps, token by token, are faster than one unfused pass over the prompts


class FusedDecoder:
    """Decodes an RWKV-7 on the CPU in fused steps.

    Raises:
        CompilerMissing: the kernels cannot be compiled here.
    """

    pads, is_fixed, wants_pairs = True, False, False

    def __init__(self, model: RWKV7ForCausalLM, layers: PopulationLayers):
        self.fused, self.eager = FusedStep(model), EagerDecoder(model, layers)
        self.steps_prompts = model.dtype != torch.float32
        self.state: RWKV7State | None = None
        self.prefixes: Prefixes | None = None  # of rows that share them; None: each has its own
        self.is_stale = self.reads_eagerly = False

    @property
    def description(self) -> str:
        products = "int8" if is_int8(self.fused.model) else "bf16" if self.steps_prompts else ""
        processor = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        return f"fused C step ({processor}{f', {products} products' if products else ''})"

    def begin(self, rows: int, tokens: int) -> None:
        self.state = self.prefixes = None
        if self.is_stale:
            self.fused.read_weights()
            self.is_stale = False
        self.reads_eagerly = not self.steps_prompts and rows < STEP_PROMPTS_FROM
        if self.reads_eagerly:
            self.eager.begin(rows, tokens)

    def step(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        if self.state is None:
            read = self._read_eagerly if self.reads_eagerly else self._read
            return read(token_MT, mask_MT, members)
        token_M = token_MT[:, 0].contiguous()
        if self.prefixes is None:
            return self.fused(token_M, self.state, members)
        before = self.prefixes.count
        token_U, from_U = self.prefixes.follow(token_M)
        self.state.copy_rows(from_U, before)
        return self.fused(token_U, self.state, members, self.prefixes)

    def _read_eagerly(self, token_MT: Tensor, mask_MT: Tensor, members: Members | None) -> Tensor:
        logits_MV = self.eager.step(token_MT, mask_MT, members)
        self.state = self.eager.state
        return logits_MV

    def _read(self, token_UT: Tensor, mask_UT: Tensor, members: Members | None) -> Tensor:
        """Logits after the prompts. Where rows can share them, equal ones are read once; the unperturbed model's rows
        then go on apart, since each makes an answer of its own."""
        rows, prefixes = len(token_UT), None
        if self.fused.can_share(members):
            prefixes, token_UT, mask_UT = Prefixes.of_prompts(token_UT, mask_UT)
        state = self.fused.new_state(rows, len(token_UT))
        pads_U, last = mask_UT.shape[1] - mask_UT.sum(1), token_UT.shape[1] - 1
        for position, token_U in enumerate(token_UT.unbind(1)):
            if position:  # what padding left in a row's state goes when its prompt begins
                state.reset_rows((pads_U == position).nonzero()[:, 0])
            logits_MV = self.fused(token_U.contiguous(), state, members, prefixes, answers=position == last)
        if prefixes and members is None:
            state.select_rows(prefixes.of_M)
            prefixes = None
        self.state, self.prefixes = state, prefixes
        return logits_MV

    def keep(self, index_M: Tensor) -> None:
        assert self.state is not None
        if self.prefixes is None:
            self.state.select_rows(index_M)
        else:
            self.state.copy_rows(self.prefixes.keep(index_M), 0)

    def weights_changed(self) -> None:
        self.is_stale = True

    def nbytes(self) -> int:
        return 0

    def close(self) -> None:
        self.state = None
        self.eager.close()
        self.fused.forget()


class FusedStep:
    """Logits of the next token for M rows, their state updated in place.

    Args:
        model: fp32, bf16 or int8, on the CPU, with contiguous parameters; call ``read_weights`` when they have changed.

    Raises:
        CompilerMissing: the kernels cannot be compiled here.
    """

    def __init__(self, model: RWKV7ForCausalLM):
        self.kernels = load_kernels(Path(__file__).with_suffix(".c"))
        self.model = model
        self.names = {
            module: f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Int8Linear)
        }
        self.vectors: dict[Tensor, str] = {
            parameter: name for name, parameter in model.named_parameters() if parameter.ndim == 1
        }
        self.read_weights()

    def read_weights(self) -> None:
        """Work out what a step has ready: the normed embeddings, how each layer mixes its inputs, and the fp32 matrices
        in panels."""
        self.forget()
        first, embeddings = self.model.model.layers[0], self.model.model.embeddings
        self.embedded_VD = first.pre_norm(embeddings.weight).detach().float()
        width = self.model.config.hidden_size
        self.mixes = [
            torch.stack([getattr(block.attn, f"x_{name}").detach().view(width) for name in ORDER]).float()
            for block in self.model.model.layers
        ]
        self.packed = {
            module: in_panels(module.weight.detach(), self.kernels.panel_width())
            for module in self.names
            if module.weight.dtype == torch.float32
        }
        self.is_packed = len(self.packed) == len(self.names)

    def can_share(self, members: Members | None) -> bool:
        """Whether rows that have read the same tokens have the same state, to the bit: nothing is perturbed but the
        head, and no product of a row depends on the others."""
        return self.is_packed and (members is None or members.noise.keys() <= {self.names[self.model.lm_head]})

    def forget(self) -> None:
        """Let go of the last rows and their buffers."""
        self._plan: StepPlan | None = None

    def new_state(self, rows: int, begun: int | None = None) -> RWKV7State:
        """A state of so many rows, of which the first ``begun``, or all, are as before the first token: zero."""
        self.forget()  # two states at once would be the peak of the memory
        config = self.model.config
        state = RWKV7State(config.num_hidden_layers)
        width, size = config.hidden_size, config.head_dim
        for layer in range(config.num_hidden_layers):
            state.att_shift_BD[layer] = torch.empty(rows, width)
            state.ffn_shift_BD[layer] = torch.empty(rows, width)
            state.wkv_BHKK[layer] = torch.empty(rows, config.num_heads, size, size)
        state.reset_rows(slice(begun))
        return state

    @torch.inference_mode()
    def __call__(
        self,
        token_U: Tensor,
        state: RWKV7State,
        members: Members | None,
        prefixes: Prefixes | None = None,
        answers: bool = True,
    ) -> Tensor:
        """Logits [M, V] after one more token of each prefix; the tensor is overwritten by the next call.

        Args:
            state: its first U rows are the prefixes'.
            members: whose the M rows are.
            prefixes: which prefix each row has; None: each row has its own.
            answers: whether the logits are wanted.
        """
        rows, shares = len(token_U if prefixes is None else prefixes.of_M), prefixes is not None
        if self._plan is None or not self._plan.fits(state, members, rows, shares):
            self._plan = StepPlan(self, state, members, rows, shares)
        state.tokens += 1
        return self._plan.run(token_U, prefixes, answers)


def can_be_fused(parameter: EvolvedParameter) -> bool:
    """Whether a fused step has room for its noise: every matrix has, for noise of low rank."""
    return parameter.kind == "lowrank" or any(fnmatchcase(parameter.name, glob) for glob in VECTORS)


def in_panels(weight_OI: Tensor, width: int) -> Tensor:
    """A matrix as ``product.h`` reads it, [panels, I, width]; outputs beyond the last are zero."""
    size_O, size_I = weight_OI.shape
    packed = weight_OI.new_zeros(-(-size_O // width), size_I, width)
    whole = size_O // width
    packed[:whole] = weight_OI[: whole * width].view(whole, width, size_I).mT
    if whole < len(packed):
        packed[whole, :, : size_O - whole * width] = weight_OI[whole * width :].mT
    return packed
