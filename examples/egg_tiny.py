"""Pretrain a language model of integers on Python's own documentation: no float, no gradient, no optimizer state.

python examples/egg_tiny.py --out runs/egg_tiny

Cut short, the same command goes on where it was. The signs of every generation, two bits for each pair, stay in the
folder: with --follow they alone make the same weights again, and the members read nothing.
"""

import time
from pathlib import Path

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from eggroll_rl.data.text import Corpus, Streams, bigram_bits, gzip_bits, read_corpus, unigram_bits
from eggroll_rl.es.hashing import tensors_hash
from eggroll_rl.es.integers import pack_signs, unpack_signs
from eggroll_rl.models.egg.model import EggConfig, new_model
from eggroll_rl.models.egg.pretraining import Pretraining
from eggroll_rl.models.egg.tokenizer import byte_tokenizer
from eggroll_rl.system.durable import replace_file

GROUP, TOKENS = 2, 100
EVERY = 50  # generations from one measurement, and saved state, to the next


def train(
    text: str = "python-docs",
    out: Path = Path("runs/egg_tiny"),
    generations: int = 3000,
    members: int = 1024,
    width: int = 64,
    layers: int = 2,
    seed: int = 0,
    follow: bool = False,
) -> None:
    """Print bits per byte of held-out text while the model learns, and sampled text before and after; save it all."""
    corpus = read_corpus(text)
    learner = Pretraining(new_model(EggConfig(width, layers), seed), members, GROUP, seed)
    streams = Streams(corpus.train, learner.streams, TOKENS)
    held_out = Streams(corpus.validation, min(1024, len(corpus.validation) // (TOKENS + 1)), TOKENS).batch(0)
    state_file, signs_file, size = out / "state.safetensors", out / "signs.bin", -(-members // 8)
    if follow:
        packed = signs_file.read_bytes()
        for generation in range(len(packed) // size):
            learner.learn(unpack_signs(packed[generation * size :][:size], members // 2), generation)
        return report(learner, held_out, len(packed) // size)

    start = restored(learner, state_file) if state_file.is_file() else 0
    introduce(corpus)
    sample(learner)
    out.mkdir(parents=True, exist_ok=True)
    with signs_file.open("ab") as signs:
        signs.truncate(start * size)
        for generation in range(start, generations):
            fitness_K = learner.fitness(streams.batch(generation), generation)
            learner.learn(fitness_K, generation)
            signs.write(pack_signs(fitness_K))
            if (generation + 1) % EVERY == 0 or generation + 1 == generations:
                signs.flush()
                state = learner.state_dict() | {"generation": torch.tensor(generation + 1)}
                replace_file(state_file, lambda path, state=state: save_file(state, path))
                report(learner, held_out, generation + 1)
    sample(learner)
    learner.model.save_pretrained(out / "model")
    byte_tokenizer().save_pretrained(out / "model")


def restored(learner: Pretraining, file: Path) -> int:
    """Take up a saved state; after how many generations it was."""
    state = load_file(file)
    generation = int(state.pop("generation"))
    learner.load_state_dict(state)
    return generation


def introduce(corpus: Corpus) -> None:
    text = corpus.validation
    print(corpus.version)
    print(
        f"its held-out part: {unigram_bits(text):.2f} bits per byte for who knows how often each is, "
        f"{bigram_bits(text):.2f} after the one before it, gzip {gzip_bits(text):.2f}"
    )


def report(learner: Pretraining, held_out: Tensor, generation: int) -> None:
    bits, weights = learner.bits_per_byte(held_out), tensors_hash(dict(learner.model.named_parameters()))
    print(
        f"{time.strftime('%H:%M:%S')} generation {generation}: {bits:.3f} bits per byte, weights {weights}", flush=True
    )


def sample(learner: Pretraining) -> None:
    """Print a document that the model makes up, or its first 200 bytes."""
    torch.manual_seed(0)
    ids = learner.model.generate(torch.tensor([[0]]), do_sample=True, max_new_tokens=200)
    print(repr(byte_tokenizer().decode(ids[0], skip_special_tokens=True)))


if __name__ == "__main__":
    typer.run(train)
