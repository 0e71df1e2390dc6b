"""`python -m studio chat`: generate one answer, or chat in the terminal."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from studio.cli.runs import Json
from studio.errors import StudioError

if TYPE_CHECKING:
    from jetmoe import RoutingTrace
    from studio.backend.chat.engine import Engine, Sampling
from studio.cli.output import Adapter, Precision, progress_bar

OWN = "Default: the model's own value."


def chat(
    model: Annotated[
        str | None,
        typer.Option(help="Model id, folder or Hub id; default: the adapter's base model, or starter."),
    ] = None,
    adapter: Adapter = None,
    precision: Precision = "auto",
    prompt: Annotated[str | None, typer.Option(help="Answer this message and exit; omit it to chat.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: int = 512,
    temperature: Annotated[float | None, typer.Option(help=f"0 is greedy decoding. {OWN}")] = None,
    top_p: Annotated[float | None, typer.Option(help=OWN)] = None,
    top_k: Annotated[int | None, typer.Option(help=OWN)] = None,
    min_p: Annotated[float | None, typer.Option(help=OWN)] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help=OWN)] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, settings and number of threads repeat an answer.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Chat with a model and stream its answers."""
    from studio.backend.adapters.find import find
    from studio.backend.chat.engine import Engine, Sampling

    asked = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    given |= {"max_new_tokens": max_new_tokens, "seed": seed, "stop": tuple(stop or ())}
    Sampling(**given)  # refuses bad values before a model is loaded
    if as_json and prompt is None:
        raise StudioError("--json only works for one message. Pass the message with --prompt.")
    trained = None if adapter is None else find(adapter).model
    # On a GPU, compiling does not pay off for one answer, and an adapter would wait for a running compilation.
    engine = Engine(compile_steps=prompt is None and adapter is None)
    with progress_bar() as progress:
        engine.load(model or trained or "starter", progress, cast(Any, precision))
    if adapter is not None:
        engine.load_adapter(adapter, adapter)
        engine.compile_steps = prompt is None
    sampling = Sampling(**(engine.status().defaults.sampling | given))
    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None:
        converse(engine, messages, sampling, adapter)
        return
    messages.append({"role": "user", "content": prompt})
    answer = write_answer(engine, messages, sampling, adapter, show=not as_json)
    if as_json:
        print(json.dumps(answer))


def converse(engine: Engine, messages: list[dict[str, str]], sampling: Sampling, adapter: str | None) -> None:
    """Answer questions from the terminal until an empty line or the end of input."""
    print(f"{engine.status().text} An empty line ends the conversation.", file=sys.stderr)
    while question := read_line():
        messages.append({"role": "user", "content": question})
        answer = write_answer(engine, messages, sampling, adapter, show=True)
        messages.append({"role": "assistant", "content": answer["text"]})


def write_answer(
    engine: Engine, messages: list[dict[str, str]], sampling: Sampling, adapter: str | None, show: bool
) -> dict[str, Any]:
    """Generate an answer and return the document that `chat --json` prints; stream the text to stdout if `show`."""
    from jetmoe import RoutingTrace

    text, token_ids, traces, timing = "", [], [], None
    for event in engine.generate(messages, sampling, adapter=adapter):
        if event.kind == "notice":
            print(event.text, file=sys.stderr)
            continue
        text += event.text
        timing = event.timing or timing
        if event.token_id is not None:
            token_ids.append(event.token_id)
        if event.trace is not None:
            traces.append(event.trace)
        if show:
            print(event.text, end="", flush=True)
    assert timing is not None
    if show:
        print()
        speed = (
            f"{timing.new_tokens} tokens, {timing.decode_tok_s:.1f} tok/s, time to first token {timing.ttft_s:.2f} s"
        )
        steps = engine.status().speed
        print(f"{speed}; steps are {steps}" if steps.startswith("eager: ") else speed, file=sys.stderr)
    return {
        "text": text,
        "adapter": adapter,
        "token_ids": token_ids,
        "prompt_tokens": timing.prompt_tokens,
        "ttft_s": round(timing.ttft_s, 4),
        "decode_tok_s": round(timing.decode_tok_s, 2),
        "steps": engine.status().speed,
        "routing": routing_summary(RoutingTrace.concatenate(traces)),
    }


def routing_summary(trace: RoutingTrace) -> dict[str, Any]:
    """Return the shape `[L, N, T, K]` of a trace and the load of each expert `[L, N, E]`."""
    from studio.analysis.load import load

    return {"shape": list(trace.experts.shape), "load": load(trace, "expert").round(5).tolist()}


def read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
