"""The prompts that an empty chat offers."""

# Different kinds of text, because the starter's routers distinguish them. The starter answered each of them right in 10
# of 10 tries, by `python -m tests.benchmarks.first_answers`.
EXAMPLES = (
    "What is the capital of Japan?",
    "What is the chemical formula of water?",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that checks whether a number is even.",
    "Write a Python function that adds two numbers.",
    "Write a short poem about the sea.",
)
