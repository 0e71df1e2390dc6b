"""Command line of the package; see its docstring."""

from __future__ import annotations

import argparse
from importlib.metadata import version

from tests.benchmarks.compatibility.comparison import Outcome
from tests.benchmarks.compatibility.fast import FAST
from tests.benchmarks.compatibility.names import FAMILY, HERE
from tests.benchmarks.compatibility.registry import all_rows
from tests.benchmarks.compatibility.run import LIBRARIES, ROOT, run

DOCUMENTS = {"jetmoe": "compatibility.md", "olmoe": "compatibility_olmoe.md"}
VERSIONS = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets")
INTRODUCTION = """# Compatibility of {title}

What works with {title} in PEFT, Trainer, TRL and transformers. Every row runs the same code twice on the same weights:
with transformers' own {title} (stock) and with this package (ours), each in its own process, on a CPU at toy size in
fp32. `COMPATIBILITY_FAMILY={family} python -m tests.benchmarks.compatibility` writes this file; `make test` checks its
fast rows. There is a table of [JetMoE](compatibility.md) and one of [OLMoE](compatibility_olmoe.md).

- Stock: "works", or the first words of the error.
- Ours: the largest difference to stock in any output, loss, gradient or saved tensor, relative to the largest value
  of that tensor; 0e+00 for equal token ids. Where stock fails, the difference to the same work without the feature
  (without compiling, for example), or "works" if there is none. Otherwise the first words of the error.
- TorchAo, Quanto, HQQ, Liger and ONNX are not installed: their rows compare what is said.
- A row that begins with DEFECT: stock works, and ours differs or fails without naming a remedy.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compatibility")
    parser.add_argument("--fast", action="store_true", help="only the rows of make test")
    parser.add_argument("--slow", action="store_true", help="only the others")
    parser.add_argument("--ours", action="store_true", help="without stock: what rows expect of ours alone")
    parser.add_argument("--only", help="only rows whose name holds this")
    arguments = parser.parse_args()
    rows = [
        row
        for row in all_rows().values()
        if not (arguments.fast and row.key not in FAST)
        and not (arguments.slow and row.key in FAST)
        and (arguments.only or "").lower() in row.key.lower()
    ]
    outcomes = run(rows, LIBRARIES[arguments.ours :], quiet=False)
    if not (arguments.fast or arguments.slow or arguments.ours or arguments.only):
        (ROOT / "docs" / DOCUMENTS[FAMILY]).write_text(document(outcomes))
    for one in outcomes:
        if one.bad or arguments.only:
            print(f"{'BAD ' * one.bad}{one.row.key} | {one.stock} | {one.ours} | {one.detail}")
        if one.trace:
            print("    " + one.trace.strip().replace("\n", "\n    "))
    print(f"{len(outcomes)} rows, {sum(outcome.bad for outcome in outcomes)} of them bad")


def document(outcomes: list[Outcome]) -> str:
    versions = [f"{name} {version(name)}" for name in VERSIONS]
    introduction = INTRODUCTION.format(title=HERE.title, family=FAMILY)
    parts = [introduction, f"{len(outcomes)} rows, with {', '.join(versions[:4])},\n{', '.join(versions[4:])}.\n"]
    for group in dict.fromkeys(outcome.row.group for outcome in outcomes):
        parts.append(f"## {group}\n\n| feature | stock | ours |\n|---|---|---|")
        parts += [f"| {one.row.name} | {one.stock} | {one.ours} |" for one in outcomes if one.row.group == group]
        parts[-1] += "\n"
    return "\n".join(parts)


if __name__ == "__main__":
    main()
