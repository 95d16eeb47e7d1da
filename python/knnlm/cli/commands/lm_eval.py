"""`knnlm lm-eval`: tasks of lm-evaluation-harness, answered by the model and the store together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knnlm.cli.console import Command, facts, print_json, table
from knnlm.cli.options import Loading, Mixing, as_json, loading_options, mixing_options, model, seed, threads
from knnlm.store.opening import open_store
from knnlm.system.extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command("lm-eval", cls=Command)
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("tasks", nargs=-1, required=True)
@model
@mixing_options
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Examples before each question.  [default: the task's]")
@click.option("--limit", type=click.IntRange(min=1), help="Ask so many questions of each task only.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Requests at a time.")
@click.option(
    "--include-path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with tasks (YAML) of your own.",
)
@click.option("--apply-chat-template", is_flag=True, help="Put questions into the model's chat template.")
@click.option("--without-store", is_flag=True, help="Use the model alone, for comparison.")
@seed
@loading_options
@threads
@as_json
def command(
    store: Path,
    tasks: tuple[str, ...],
    model: str | None,
    mixing: Mixing,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    include_path: Path | None,
    apply_chat_template: bool,
    without_store: bool,
    seed: int,
    loading: Loading,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run TASKS of lm-evaluation-harness with the model and STORE together; a model of Hugging Face only.

    Needs `pip install 'knnlm[lm-eval]'`. Releases of the harness that load plug-ins know the same as `lm-eval --model
    knnlm --model_args store=STORE`.

    \b
    Examples:
      knnlm lm-eval store lambada_openai --limit 100
      knnlm lm-eval store my_task --include-path tasks/ --batch-size 8
    """
    require("lm_eval", use="knnlm lm-eval")
    import torch

    from knnlm.hf.harness import evaluate_tasks

    if threads is not None:
        torch.set_num_threads(threads)
    with open_store(store) as opened:
        settings = mixing.within(opened).given()
    found = evaluate_tasks(
        store,
        tasks,
        model,
        without_store=without_store,
        include_path=include_path,
        loading={"device": loading.device, "dtype": loading.dtype, "revision": loading.revision,
                 "trust_remote_code": loading.trust_remote_code or None, "batch_size": batch_size,
                 "parallelize": None if loading.device_map is None else True},
        settings={**settings, "threads": threads},
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=apply_chat_template,
        seed=seed,
    )  # fmt: skip
    if as_json:
        print_json({"store": str(store), **found})
        return
    table(None, ["task", "metric", "value", "± standard error"], _rows(found["results"]))
    used = found["settings"]
    if used is not None:
        facts({"settings": f"λ {used['lambda_']:.3f}, T {used['temperature']:.4g}, k {used['k']}"})


def _rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row for each metric of each task."""
    rows = []
    for task, metrics in results.items():
        for name, value in metrics.items():
            metric = name.split(",")[0]
            if isinstance(value, (int, float)) and not metric.endswith("_stderr") and metric not in ("sample_len",):
                error = metrics.get(name.replace(metric, f"{metric}_stderr"))
                rows.append([task, metric, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else "–"])
    return rows
