"""The fuzz target itself, without atheris: its seeds are sound, and a few thousand plain mutations find nothing."""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    """The script as a module; importing it starts nothing."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


target = load("fuzz_update")
SEEDS = load("seed_corpus").seeds()


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_is_a_sound_file(name: str) -> None:
    target.one_input(SEEDS[name])
    target.FILE.write_bytes(target.assemble(SEEDS[name]))
    assert target.look(target.FILE)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, left out or doubled."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(4):
            case 0 | 1 if at < len(found):
                found[at] = rng.choice((found[at] ^ 1 << rng.randrange(8), 0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del found[at : at + rng.randint(1, 8)]
            case _:
                found[at:at] = found[at : at + rng.randint(1, 8)]
    return bytes(found)


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_of_a_seed_find_nothing(name: str) -> None:
    rng, data = random.Random(name), SEEDS[name]
    start = 0 if data.startswith(b"MOTETUP1") else data.index(b"\n") + 1  # mostly behind the header
    for _ in range(60):
        kept = start if rng.random() < 0.9 else 0
        target.one_input(data[:kept] + mutated(data[kept:], rng))
