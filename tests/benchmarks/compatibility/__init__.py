"""What works with a model family in PEFT, Trainer, TRL and transformers: ours against unmodified transformers and PEFT.

    python -m tests.benchmarks.compatibility                 # every row, some minutes; writes docs/compatibility.md
    python -m tests.benchmarks.compatibility --only hook     # rows whose name holds a word; prints them
    python -m tests.benchmarks.compatibility --fast          # the rows of `make test`; prints them
    COMPATIBILITY_FAMILY=olmoe python -m tests.benchmarks.compatibility      # the same with OLMoE

A row is a function of a `Place`. It uses the public classes of transformers, PEFT and TRL alone, so it runs unchanged
in two processes: one imports `jetmoe` first, so that the Auto classes return ours, and one never imports it.
"""
