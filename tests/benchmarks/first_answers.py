"""How often a model answers easy questions right at its first try: `python -m tests.benchmarks.first_answers`.

    python -m tests.benchmarks.first_answers                          # the starter, 10 tries of each question
    python -m tests.benchmarks.first_answers --temperature 0.7        # instead of the model's own default
    python -m tests.benchmarks.first_answers --tries 3 --model FOLDER

Every try has a seed. An answer is right if it holds what the question's pattern looks for. The examples of the Chat tab
(`studio/ui/chat/tab.py`) are questions that the starter answers right in nearly all tries, of different kinds of text.
"""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

from studio.backend.chat.engine import Engine, Sampling

QUESTIONS = {
    "What is the capital of France?": r"\bParis\b",
    "What is the capital of Japan?": r"\bTokyo\b",
    "Which planet is the largest in the solar system?": r"\bJupiter\b",
    "How many days are in a week?": r"\b(7|seven)\b",
    "What is the chemical formula of water?": "H(2|₂)O",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What is the opposite of hot?": r"\bcold\b",
    "What do bees make?": r"\bhoney\b",
    "Name three primary colors.": r"(?=.*\bred)(?=.*\bblue)(?=.*\byellow)",
    "Why is the sky blue? Answer in two sentences.": "scatter",
    "Translate to French: Good morning, my friend.": "Bonjour",
    "Quelle est la capitale de l'Italie ?": r"\bRome\b",
    "¿Cuál es la capital de España?": r"\bMadrid\b",
    "Write a Python function that adds two numbers.": r"def \w+\((\w+), (\w+)\):.*(return \1 \+ \2)",
    "Write a Python function that checks whether a number is even.": r"def .*return .*% 2 == 0",
    "Tell a very short story about a lighthouse keeper and a whale.": r"(?=.*lighthouse)(?=.*whale)",
    "Write a short poem about the sea.": r"\b(sea|waves?|ocean)\b",
}


def main() -> None:
    options = _options()
    engine = Engine()
    engine.load(options.model)
    status = engine.status()
    changed: dict[str, Any] = {} if options.temperature is None else {"temperature": options.temperature}
    settings = status.defaults.sampling | changed | {"max_new_tokens": options.max_new_tokens}
    print(f"{status.text} {options.tries} tries, {settings}.\n\n| question | right | seconds |\n|---|--:|--:|")
    total = 0
    for question, pattern in QUESTIONS.items():
        started = time.perf_counter()
        right = sum(
            bool(re.search(pattern, answer(engine, question, Sampling(**settings, seed=seed)), re.S | re.I))
            for seed in range(options.tries)
        )
        total += right
        seconds = (time.perf_counter() - started) / options.tries
        print(f"| {question} | {right} of {options.tries} | {seconds:.1f} |", flush=True)
    print(f"| all | {total} of {options.tries * len(QUESTIONS)} | |")


def answer(engine: Engine, question: str, sampling: Sampling) -> str:
    events = engine.generate([{"role": "user", "content": question}], sampling)
    return "".join(event.text for event in events if event.kind in ("token", "done"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()
