"""Run transformers' own command line on the classes of this package.

    python -m examples.transformers_cli serve MODEL --device cpu        # an OpenAI-compatible server
    python -m examples.transformers_cli chat MODEL http://localhost:8000

MODEL is a folder, such as a merged export, or an id on the Hub. `transformers serve` without this script takes
transformers' own classes, which read the same files. It needs `pip install "transformers[serving]"`.
"""

from transformers.cli.serving import model_manager
from transformers.cli.transformers import app

import jetmoe

# `serve` looks a model's class up by its name in the package transformers, not with the Auto classes.
for name in ("JetMoeForCausalLM", "OlmoeForCausalLM"):
    setattr(model_manager.transformers, name, getattr(jetmoe, name))

if __name__ == "__main__":
    app()
