"""`python -m studio ...`: everything the page does, from the command line, with the same defaults.

    python -m studio chat --prompt "What is a mixture of experts?"
    python -m studio chat --prompt "Hi" --json
    python -m studio chat --adapter 3f2a
    python -m studio classify predict --labels sport,science TEXT
    python -m studio export 3f2a --to DIR --merge
    python -m studio export 3f2a --to DIR --push NAME/REPO
    python -m studio models
    python -m studio upcycle SRC DIR --replicas 4
    python -m studio bench generate
    python -m studio user add NAME
    python -m studio doctor

Exit codes: 0 done, 2 the person can fix it (the sentence is on stderr), 1 a bug.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from studio.cli.classify import classify_app
from studio.cli.runs import Json, runs_app
from studio.cli.train import resume, train, train_classifier
from studio.cli.user import user_app
from studio.errors import StudioError

if TYPE_CHECKING:
    from jetmoe import RoutingTrace
    from studio.backend.chat.engine import Engine, Sampling

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="JetMoE Studio on the command line.")
bench_app = typer.Typer(no_args_is_help=True, help="Tables against peers; every row is measured in the same call.")
app.add_typer(bench_app, name="bench")
app.add_typer(classify_app, name="classify")
app.add_typer(runs_app, name="runs")
app.add_typer(user_app, name="user")
app.command()(train)
classify_app.command("train")(train_classifier)
runs_app.command()(resume)

Precision = Annotated[
    str, typer.Option(help="nf4 (4-bit), bf16 or fp32; auto: 4-bit on a GPU, on a CPU what suits the model.")
]
Model = Annotated[str, typer.Option(help="A model of `python -m studio models`.")]
Adapter = Annotated[str | None, typer.Option(help="Answer with it: a run's id, or the folder of a PEFT adapter.")]
Shape = Annotated[str | None, typer.Option(help="jetmoe-8b: random weights of that shape instead of a model.")]


def main() -> None:
    """Runs the command line; the one place where a StudioError becomes an exit code."""
    try:
        app()
    except StudioError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


@app.command()
def chat(
    model: Annotated[
        str | None, typer.Option(help="A model; else the adapter's, where a run made it; else starter.")
    ] = None,
    adapter: Adapter = None,
    precision: Precision = "auto",
    prompt: Annotated[str | None, typer.Option(help="Answer this and leave; without it, a conversation.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 50,
    min_p: float = 0.0,
    repetition_penalty: float = 1.1,
    seed: int | None = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Chats with a model; its answers stream."""
    from studio.backend.adapters.find import find
    from studio.backend.chat.engine import Engine, Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, tuple(stop or ()))
    if as_json and prompt is None:
        raise StudioError("--json answers one message: give it with --prompt.")
    trained = None if adapter is None else find(adapter).model
    # One answer is over before a compiler would have paid for itself, and a switch would wait for one that runs.
    engine = Engine(compile_steps=prompt is None and adapter is None)
    with progress_bar() as progress:
        engine.load(model or trained or "starter", progress, cast(Any, precision))
    if adapter is not None:
        engine.load_adapter(adapter, adapter)
        engine.compile_steps = prompt is None
    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None:
        converse(engine, messages, sampling, adapter)
        return
    messages.append({"role": "user", "content": prompt})
    answer = write_answer(engine, messages, sampling, adapter, show=not as_json)
    if as_json:
        print(json.dumps(answer))


def converse(engine: Engine, messages: list[dict[str, str]], sampling: Sampling, adapter: str | None) -> None:
    """Questions from the terminal until an empty line or the end of input."""
    print(f"{engine.status().text} An empty line ends the conversation.", file=sys.stderr)
    while question := _ask():
        messages.append({"role": "user", "content": question})
        answer = write_answer(engine, messages, sampling, adapter, show=True)
        messages.append({"role": "assistant", "content": answer["text"]})


def write_answer(
    engine: Engine, messages: list[dict[str, str]], sampling: Sampling, adapter: str | None, show: bool
) -> dict[str, Any]:
    """The answer as the document that `chat --json` prints; streams it to stdout where `show`."""
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
        print(
            f"{timing.new_tokens} tokens, {timing.decode_tok_s:.1f} a second, the first after {timing.ttft_s:.2f} s",
            file=sys.stderr,
        )
    return {
        "text": text,
        "adapter": adapter,
        "token_ids": token_ids,
        "prompt_tokens": timing.prompt_tokens,
        "ttft_s": round(timing.ttft_s, 4),
        "decode_tok_s": round(timing.decode_tok_s, 2),
        "routing": routing_summary(RoutingTrace.concatenate(traces)),
    }


def routing_summary(trace: RoutingTrace) -> dict[str, Any]:
    """Shape `[L, N, T, K]` of a trace, and the load of each expert `[L, N, E]`."""
    from studio.analysis.load import load

    return {"shape": list(trace.experts.shape), "load": load(trace, "expert").round(5).tolist()}


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run's id, or its first characters; or the folder of a PEFT adapter.")],
    to: Annotated[Path, typer.Option(help="Folder for it; made anew.")],
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to the weights, and prove it.")] = False,
    four_bit: Annotated[bool, typer.Option("--four-bit", help="With --merge: in 4 bits instead of 16.")] = False,
    model: Annotated[str | None, typer.Option(help="The model that was trained, where no run tells.")] = None,
    push: Annotated[str | None, typer.Option(help="NAME/REPO on the hub to upload it to; private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everybody to see.")] = False,
    as_json: Json = False,
) -> None:
    """Writes a run's adapter, or the model with it merged in, with a model card, and puts it on the hub if asked to."""
    from studio.backend.export import export as exporting

    token = _token_for(push, public)
    with progress_bar() as progress:
        exported = exporting.export(run, to, merge, four_bit, model, progress)
    url = None if push is None else _push(exported.folder, push, token, public)
    if as_json:
        print(json.dumps(exported.row() | ({} if url is None else {"url": url})))
        return
    print(exported.folder)
    if proof := exported.proof:
        print(
            f"Merge proof: off by {proof['error']:.3f} of the adapter's change (at most {proof['tolerance']}), and by "
            f"{proof['from_base']:.3f} from the base; read back and compared on {proof['tokens']} tokens."
        )
    if url is not None:
        print(url)


def _token_for(push: str | None, public: bool) -> str:
    """What can be wrong with pushing is said before a long merge."""
    from studio.backend.export import hub

    if push is None:
        if public:
            raise StudioError("Only what is pushed can be public: give --push NAME/REPO, too.")
        return ""
    hub.check_repo_id(push)
    return hub.stored_token()


def _push(folder: Path, repo_id: str, token: str, public: bool) -> str:
    from studio.backend.export import hub

    try:
        return hub.push(folder, repo_id, token, private=not public)
    except StudioError as error:
        again = f"hf upload {repo_id} {shlex.quote(str(folder))}{'' if public else ' --private'}"
        raise StudioError(f"{error} It is exported to {folder}; `{again}` pushes it, too.") from error


@app.command()
def models(as_json: Json = False) -> None:
    """Lists the models, where they come from and the memory they need."""
    from studio.backend.models import catalog

    rows = catalog.rows()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        need = row["needs_gib"]
        state = "ready" if row["ready"] else "fetched on first use"
        print(f"{row['id']:24} {row['family']:8} {need['bf16']:6.1f} GiB bf16 {need['nf4']:6.1f} GiB nf4  {state}")


@app.command()
def upcycle(
    source: Annotated[Path, typer.Argument(help="Folder or .gguf file of a Llama-architecture model.")],
    directory: Annotated[Path, typer.Argument(help="Folder for the JetMoE model; made anew.")],
    replicas: Annotated[int, typer.Option(help="Copies of each slot that the routers choose between.")] = 4,
    fit_on: Annotated[list[Path] | None, typer.Option(help="Texts to fit the routers on; repeatable.")] = None,
) -> None:
    """Makes a JetMoE of a dense model, without changing what it computes."""
    from jetmoe.upcycle import fitting_tokens
    from jetmoe.upcycle import upcycle as convert

    for path in [source, *(fit_on or [])]:
        if not path.exists():
            raise StudioError(f"There is no {path}. Check the spelling.")
    if directory.exists() and any(directory.iterdir()):
        raise StudioError(f"{directory} is not empty. Name a new folder.")
    try:
        with progress_bar() as progress:
            token_ids = fitting_tokens(source, fit_on) if fit_on else None
            convert(source, directory, replicas, token_ids=token_ids, progress=progress)
    except ValueError as error:
        raise StudioError(str(error)) from error
    print(directory)


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="Folder of a 16-bit JetMoE checkpoint.")],
    directory: Annotated[Path, typer.Argument(help="Folder for the 4-bit one; what is there already is kept.")],
    double: Annotated[bool, typer.Option(help="Quantize the scales too: experts 8 % smaller.")] = False,
) -> None:
    """Writes the 4-bit (NF4) checkpoint of a 16-bit one; started again, it goes on where it stopped."""
    from jetmoe.loading.checkpoint import CheckpointError
    from jetmoe.loading.convert import convert
    from studio.backend.system.progress import reading

    if not source.is_dir():
        raise StudioError(f"There is no folder {source}. Check the spelling.")
    try:
        with progress_bar() as progress:
            convert(source, directory, double_quantization=double, progress=reading(progress))
    except (CheckpointError, RuntimeError) as error:
        raise StudioError(str(error)) from error
    print(directory)


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also answer and train a little.")] = False,
    model: Model = "starter",
    host: Annotated[str | None, typer.Option(help="As for app.py, as are the next three.")] = None,
    auth: Annotated[Path | None, typer.Option(help="File of those who may log in.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may use the page.")] = False,
    proxy: Annotated[bool, typer.Option("--proxy", help="A proxy stands before it.")] = False,
    as_json: Json = False,
) -> None:
    """Checks this machine, and who would reach the page, and says what to do about each finding."""
    from studio.backend.doctor import examine
    from studio.backend.hosting.exposure import Exposure

    report = examine(Exposure.from_environment(host, public, auth, proxy), deep, model)
    if as_json:
        print(json.dumps(report))
    else:
        for check in report["checks"]:
            print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
            if not check["ok"]:
                print(f"     {check['remedy']}")
    if not report["ok"]:
        sys.exit(2)


@bench_app.command("generate")
def bench_generate(
    model: Model = "starter",
    shape: Shape = None,
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    threads: int = 2,
    repeats: int = 3,
    as_json: Json = False,
) -> None:
    """Prefill and decode of the studio, transformers' own class and (where installed) llama.cpp."""
    from studio.backend.bench.report import generate, table

    report = generate(model, weights or ["bf16", "nf4"], prompt_tokens, new_tokens, threads, repeats, shape)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("viewers")
def bench_viewers(
    url: Annotated[str | None, typer.Option(help="Of a studio that runs; else one is started.")] = None,
    count: Annotated[int, typer.Option(help="Pages that watch the newest run.")] = 100,
    seconds: int = 180,
    as_json: Json = False,
) -> None:
    """Many pages that watch one run, beside one chat and the training of that run: how long their questions take."""
    from studio.backend.bench.report import table
    from studio.backend.bench.viewers import viewers

    report = viewers(url, count, seconds)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("load")
def bench_load(
    model: Model = "starter",
    shape: Shape = None,
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    threads: int = 2,
    repeats: int = 3,
    as_json: Json = False,
) -> None:
    """Loading a checkpoint: seconds and peak memory."""
    from studio.backend.bench.report import load, table

    report = load(model, weights or ["bf16", "nf4"], threads, repeats, shape)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("train")
def bench_train(
    model: Model = "starter",
    shape: Shape = None,
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    batch: int = 4,
    length: int = 256,
    rank: int = 16,
    threads: int = 2,
    repeats: int = 5,
    as_json: Json = False,
) -> None:
    """Training steps of a LoRA on all experts, against stock PEFT on transformers' own class."""
    from studio.backend.bench.report import table, train

    report = train(model, weights or ["bf16"], batch, length, rank, threads, repeats, shape)
    print(json.dumps(report) if as_json else table(report))


@bench_app.command("classify")
def bench_classify(
    model: Model = "starter",
    weights: Annotated[list[str] | None, typer.Option(help="bf16, nf4, fp32; repeatable.")] = None,
    rows: int = 128,
    batch: int = 16,
    threads: int = 2,
    repeats: int = 3,
    as_json: Json = False,
) -> None:
    """Texts through a classification head, against transformers' text-classification pipeline."""
    from studio.backend.bench.report import classify, table

    report = classify(model, weights or ["bf16"], rows, batch, threads, repeats)
    print(json.dumps(report) if as_json else table(report))


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A bar on stderr, for people only: silent where stderr is not a terminal."""
    from tqdm import tqdm

    with tqdm(total=100, bar_format="{l_bar}{bar}| {n:.0f} %", leave=False, disable=None) as bar:

        def progress(fraction: float, text: str) -> None:
            bar.set_description_str(text, refresh=False)
            bar.n = 100 * fraction
            bar.refresh()

        yield progress


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
