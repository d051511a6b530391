"""``mcgrpo convert``. Everything heavy is imported inside a command."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from megatron_cgrpo.console import log_progress, readable_errors

if TYPE_CHECKING:
    from checkpoints_convert.result import Result
    from megatron_cgrpo.weights.layout import CheckpointLayout

convert_app = typer.Typer(
    name="convert",
    help="""Hugging Face to Megatron and back, checked tensor by tensor.

    Needs no GPU, and memory for a few tensors only. The families: Qwen2/2.5, Qwen3, Llama 2 and 3, Mistral,
    Qwen3-MoE, Mixtral.

    A 7B model:

    mcgrpo convert hf-to-megatron --hf Qwen2.5-7B --megatron Qwen2.5-7B-megatron --tp 2

    mcgrpo convert verify --hf Qwen2.5-7B --megatron Qwen2.5-7B-megatron

    Train it (a recipe with model.path: Qwen2.5-7B-megatron), then publish what was trained:

    mcgrpo convert megatron-to-hf --megatron runs/mine/checkpoints/step_000200 --hf Qwen2.5-7B-trained

    A 32B model differs in its layout only: --tp 8 --pp 4. Any layout loads any checkpoint.
    """,
    no_args_is_help=True,
)

CHECK_FAILED = 1

HFInput = Annotated[Path, typer.Option("--hf", metavar="DIR", help="The Hugging Face model: config.json, safetensors.")]
MegatronInput = Annotated[
    Path,
    typer.Option(
        "--megatron", metavar="DIR", help="A converted checkpoint, or a training run's checkpoints/step_* directory."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The model's Hugging Face directory (config.json, tokenizer), if the checkpoint has none."
    ),
]
DtypeOption = Annotated[
    str, typer.Option(metavar="TYPE", help="bf16, fp16, fp32, or keep: every tensor's own (FP8 becomes bf16).")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Layers in work at once; memory grows with it. Default: the cores, 4 at most.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TP = Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")]
PP = Annotated[int, typer.Option(min=1, help="Pipeline stages.")]
VPP = Annotated[int, typer.Option(min=1, help="Model chunks that each pipeline stage interleaves.")]
EP = Annotated[int, typer.Option(min=1, help="Expert-parallel ranks.")]
FirstStage = Annotated[
    int | None, typer.Option(help="Layers on the first pipeline stage, if the stages are uneven.", show_default=False)
]
LastStage = Annotated[
    int | None, typer.Option(help="Layers on the last pipeline stage, if the stages are uneven.", show_default=False)
]
VocabDivisor = Annotated[
    int,
    typer.Option(
        "--make-vocab-size-divisible-by", min=1, help="Pad the vocabulary to a multiple of this times --tp (Megatron)."
    ),
]


@convert_app.command("hf-to-megatron")
def hf_to_megatron_command(
    hf: HFInput,
    megatron: Annotated[Path, typer.Option(metavar="DIR", help="The Megatron checkpoint to write.")],
    tp: TP = 1,
    pp: PP = 1,
    vpp: VPP = 1,
    ep: EP = 1,
    first_stage_layers: FirstStage = None,
    last_stage_layers: LastStage = None,
    vocab_divisor: VocabDivisor = 1,
    dtype: DtypeOption = "keep",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a Hugging Face model to a Megatron dist_checkpointing checkpoint (torch_dist).

    The layout decides how the files are cut, not who can load them: any layout loads any checkpoint. An interrupted
    conversion goes on when the same command is run again.

    Example: mcgrpo convert hf-to-megatron --hf Qwen3-32B --megatron Qwen3-32B-megatron --tp 8 --pp 4
    """
    with readable_errors():
        log_progress()
        from checkpoints_convert.hf_to_megatron import hf_to_megatron
        from checkpoints_convert.options import Options

        layout = _layout(tp, pp, vpp, ep, first_stage_layers, last_stage_layers, vocab_divisor)
        result = hf_to_megatron(hf, megatron, layout, Options.parse(dtype, threads))
    _report(result, as_json)


@convert_app.command("megatron-to-hf")
def megatron_to_hf_command(
    megatron: MegatronInput,
    hf: Annotated[Path, typer.Option(metavar="DIR", help="The Hugging Face model to write.")],
    config: ConfigOption = None,
    max_shard_gb: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Largest safetensors file, in 10^9 bytes.")
    ] = 5.0,
    dtype: DtypeOption = "keep",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a Megatron checkpoint of any layout to a Hugging Face model that transformers and vLLM load as it is.

    Example: mcgrpo convert megatron-to-hf --megatron runs/mine/checkpoints/step_000200 --hf mine --dtype bf16
    """
    with readable_errors():
        log_progress()
        from checkpoints_convert.megatron_to_hf import megatron_to_hf
        from checkpoints_convert.options import Options

        result = megatron_to_hf(megatron, hf, Options.parse(dtype, threads), config, int(max_shard_gb * 1e9))
    _report(result, as_json)


@convert_app.command("reshard")
def reshard_command(
    megatron: MegatronInput,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The Megatron checkpoint to write.")],
    tp: TP = 1,
    pp: PP = 1,
    vpp: VPP = 1,
    ep: EP = 1,
    first_stage_layers: FirstStage = None,
    last_stage_layers: LastStage = None,
    vocab_divisor: VocabDivisor = 1,
    config: ConfigOption = None,
    dtype: DtypeOption = "keep",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut a Megatron checkpoint's model weights for another layout. Optimiser state is left out.

    Not needed to load it: any layout loads any checkpoint, training runs included. It makes loading read whole files.

    Example: mcgrpo convert reshard --megatron Qwen3-32B-megatron --out Qwen3-32B-tp4 --tp 4 --pp 8
    """
    with readable_errors():
        log_progress()
        from checkpoints_convert.options import Options
        from checkpoints_convert.reshard import reshard

        layout = _layout(tp, pp, vpp, ep, first_stage_layers, last_stage_layers, vocab_divisor)
        result = reshard(megatron, out, layout, Options.parse(dtype, threads), config)
    _report(result, as_json)


@convert_app.command("verify")
def verify_command(
    hf: HFInput,
    megatron: MegatronInput,
    logits: Annotated[
        bool, typer.Option("--logits", help="Run both models and compare their logits; each has to fit in memory.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Compare on this; repeatable. Without it: random tokens.", show_default=False
        ),
    ] = None,
    tp: TP = 1,
    pp: PP = 1,
    config: ConfigOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that a Hugging Face model and a Megatron checkpoint are the same model, tensor by tensor.

    Exit code 0: they agree. 1: a check failed. 2: there is nothing to compare. --tp and --pp are those in which
    --logits runs Megatron, whatever the checkpoint's own layout.

    Example: mcgrpo convert verify --hf Qwen2.5-7B --megatron Qwen2.5-7B-megatron --logits --prompt "Why is 7*8 56?"
    """
    with readable_errors():
        log_progress()
        from checkpoints_convert.logits import LogitsOptions
        from checkpoints_convert.options import Options
        from checkpoints_convert.verify import verify

        wanted = LogitsOptions.parse(logits, prompt, tp, pp)
        report = verify(hf, megatron, config, Options.parse("keep", threads).threads, wanted)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        report.print(Console())
    if not report.passed:
        raise typer.Exit(CHECK_FAILED)


@convert_app.command("inspect")
def inspect_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Any checkpoint.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show what a checkpoint holds. Reads no tensor, so it takes a second whatever the size.

    Example: mcgrpo convert inspect runs/mine/checkpoints/step_000200
    """
    with readable_errors():
        from checkpoints_convert.inspect_checkpoint import inspect
        from checkpoints_convert.inspect_report import print_contents

        contents = inspect(directory)
    if as_json:
        typer.echo(json.dumps(asdict(contents), indent=2))
    else:
        print_contents(contents, Console())


def _layout(*sizes: Any) -> CheckpointLayout:
    from megatron_cgrpo.weights.layout import CheckpointLayout

    return CheckpointLayout(*sizes)


def _report(result: Result, as_json: bool) -> None:
    manifest = result.manifest
    if as_json:
        summary = {
            "directory": str(result.directory),
            "architecture": manifest.architecture,
            "parameters": manifest.parameters,
            "tensors": len(manifest.tensors),
            "stored_dtypes": manifest.stored_dtypes,
            "layout": None if manifest.layout is None else asdict(manifest.layout),
            "tokenizer": asdict(result.tokenizer),
            "bytes": result.nbytes,
            "seconds": result.seconds,
        }
        typer.echo(json.dumps(summary, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    for warning in result.tokenizer.warnings:
        console.print(f"[yellow]warning[/] {warning}")
    console.print(
        f"{result.directory}: {manifest.architecture}, {manifest.parameters:,} parameters in "
        f"{len(manifest.tensors)} tensors, {result.nbytes / 1e9:.2f} GB in {result.seconds:.1f} s"
    )
