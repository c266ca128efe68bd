"""Mutate config and header bytes of adapters: whatever they say, the answer is a spec or findings.

    python benchmarks/fuzz_adapters.py [--runs 1000000] [--seed 0] [--corpus tests/corpus]

Each file of the corpus is a config and a header, with a zero byte between them. An input that raises
anything but UnreadableAdapterError, or takes more than a second, is written to the corpus and reported.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from hotswap.adapters.spec import describe
from hotswap.adapters.texts import Texts
from hotswap.errors import UnreadableAdapterError

WORDS = (
    b'"r"', b'"lora_alpha"', b'"rank_pattern"', b'"alpha_pattern"', b'"LORA"', b'"peft_type"', b"null",
    b'"target_parameters"', b'"trainable_token_indices"', b'"modules_to_save"', b"[", b"]", b"{", b"}",
    b'"use_dora"', b'"lora_bias"', b"true", b"1e999", b"-1", b"9223372036854775808", b"2.0", b"\\u0000",
    b'"data_offsets"', b'"shape"', b'"dtype"', b'"F32"', b'"BF16"', b"..", b"/", b"\xff", b".lora_A.weight",
    b".lora_B.weight", b".lora_magnitude_vector", b".lora_embedding_A", b'"__metadata__"', b"(a+)+", b",",
)  # fmt: skip


_DIGIT = re.compile(rb"\d")
_ENDS = re.compile(rb"(\d{1,12})\s*\]\s*\}")


def run(data: bytes) -> str:
    """Read one input: "spec", or the codes of the findings."""
    text, _, header = data.partition(b"\0")
    size = max(map(int, _ENDS.findall(header)), default=0)  # as long as the header says
    try:
        texts = Texts("fuzzed", "fuzzed", text if text else None, header, size)
        spec = describe(texts, texts.layout())
    except UnreadableAdapterError as error:
        return ",".join(sorted({finding.code for finding in error.findings})) or "nothing"
    return ",".join(sorted({finding.code for finding in spec.findings})) or "spec"


def mutated(data: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
    """Change a few places of an input, in half of all cases only of its config."""
    config, *header = data.split(b"\0", 1) if chance.randrange(2) else [data]
    found = bytearray(config)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        length = chance.choice((1, 1, 2, 4, 16))
        kind = chance.randrange(6)
        if kind == 0:
            found[at : at + length] = chance.randbytes(length)
        elif kind == 1:
            found[at:at] = chance.choice(WORDS)
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at : at + length] = chance.choice(WORDS)
        elif kind == 4:
            other = chance.choice(corpus)
            start = chance.randrange(len(other) + 1)
            found[at:at] = other[start : start + 32]
        else:  # another number is the change that stays readable
            digit = _DIGIT.search(found, at)
            if digit is not None:
                found[digit.start()] = chance.choice(b"0123456789")
    return b"\0".join((found, *header))


def main() -> int:
    """Run, and print how often each answer was given; 1 when an input did harm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path("tests/corpus"))
    given = parser.parse_args()
    corpus = [path.read_bytes() for path in sorted(given.corpus.glob("*.bin"))]
    chance, answers, harmful = random.Random(given.seed), Counter[str](), 0  # noqa: S311
    for _ in range(given.runs):
        data = mutated(chance.choice(corpus), corpus, chance)
        start = time.process_time()
        try:
            answer = run(data)
        except Exception as error:
            answer = type(error).__name__
            harmful += 1
            (given.corpus / f"found-{harmful}.bin").write_bytes(data)
            print(f"{answer}: {error}", file=sys.stderr)
        if time.process_time() - start > 1:
            harmful += 1
            (given.corpus / f"slow-{harmful}.bin").write_bytes(data)
        if answer not in answers and len(corpus) < 500 and len(data) < 4096:
            corpus.append(data)  # an answer that is new leads further
        answers[answer] += 1
    print(f"{given.runs} inputs, seed {given.seed}, {harmful} harmful")
    for answer, count in answers.most_common(12):
        print(f"  {count:8} {answer}")
    return min(harmful, 1)


if __name__ == "__main__":
    sys.exit(main())
