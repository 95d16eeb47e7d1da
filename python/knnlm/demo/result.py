"""What the demo measured, what it claims of it, and how both are shown: terminal table, JSON, report."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from knnlm.demo.report import Case, Check, Report, Row
from knnlm.model.identity import package_version
from knnlm.report.numbers import change, number, percent
from knnlm.report.plots import CURVES, Plot, tuning_plot
from knnlm.report.rows import TokenRow
from knnlm.report.table import to_table
from knnlm.system.counted import counted

# What must hold for the demo to have shown its point.
ADAPTED_GAIN = 0.30  # quantised against the LM alone, language reference
IN_DOMAIN_GAIN = 0.05  # the same, docstrings
QUANTISED_LOSS = 0.02  # quantised against exact
SHUFFLED_SHARE = 1 / 3  # of the gain, at most, with shuffled values

_ROWS = {
    "lm": "language model alone",
    "exact": "kNN-LM, exact keys",
    "quantised": "kNN-LM, quantised keys",
    "shuffled": "kNN-LM, the same store, values shuffled",
    "ngram": "5-gram of the model's training text",
}


@dataclass(frozen=True)
class Curve:
    """Validation perplexity (y) against a setting (x), and that of the model alone on the same tokens."""

    x: Sequence[float]
    y: Sequence[float]
    alone: float = float("nan")
    tokens: int = 0


@dataclass(frozen=True)
class CaseResult:
    """One case of the demo.

    Attributes:
        perplexity: token perplexity on the test text, by the names "lm", "exact", "quantised", "shuffled", "ngram".
        tokens_per_second: the same names; model and search together.
        bytes_per_entry: of the store on disk, by what they hold, and their "total".
        overlap: share of the test tokens in a 13-gram that the store has too.
        curves: by the names "lambda_", "temperature", "k", "size".
        seconds: by the names "dump", "build", "tune", "evaluate".
    """

    name: str
    text: str
    entries: int
    store_documents: int
    tokens: int
    documents: int
    perplexity: Mapping[str, float]
    tokens_per_second: Mapping[str, float]
    lambda_: float
    temperature: float
    k: int
    bytes_per_entry: Mapping[str, float]
    overlap: float
    valid_lm: float
    curves: Mapping[str, Curve]
    seconds: Mapping[str, float]
    examples: Sequence[TokenRow] = ()

    def gain(self, name: str) -> float:
        """Relative change of the perplexity against the LM alone; negative is better."""
        return self.perplexity[name] / self.perplexity["lm"] - 1


@dataclass(frozen=True)
class DemoResult:
    """Both cases, and how they were made.

    Attributes:
        steps: of the model's training.
        steps_asked: as many were asked for; fewer where the seconds for it were over.
    """

    in_domain: CaseResult
    adapted: CaseResult
    made: Mapping[str, Mapping[str, str]]
    seconds: float
    report: str = ""
    validation_curve: Curve = field(default_factory=lambda: Curve([], []))
    steps: int = 0
    steps_asked: int = 0

    @property
    def cut(self) -> bool:
        """Whether the training ended before its steps."""
        return self.steps < self.steps_asked

    @property
    def caution(self) -> str:
        """What to know of a run whose training was cut; "" for any other."""
        if not self.cut:
            return ""
        return (
            f"The training was cut: {self.steps:,} of {counted(self.steps_asked, 'step')} in the seconds it had. The "
            "model is weaker than meant, and a store helps a weak model more: what is measured here is no measure of "
            "the method. More --seconds let the training end."
        )

    def cases(self) -> tuple[CaseResult, CaseResult]:
        """In-domain first."""
        return self.in_domain, self.adapted

    def checks(self) -> list[Check]:
        """The demo's claims with what was measured."""
        inside, adapted = self.in_domain, self.adapted
        found = [
            _at_least(f"adapted: perplexity at least {percent(ADAPTED_GAIN, 0)} lower", adapted, ADAPTED_GAIN),
            _at_least(f"in domain: perplexity at least {percent(IN_DOMAIN_GAIN, 0)} lower", inside, IN_DOMAIN_GAIN),
        ]
        for case, name in ((inside, "in domain"), (adapted, "adapted")):
            loss = case.perplexity["quantised"] / case.perplexity["exact"] - 1
            found.append(
                Check(
                    f"{name}: quantised within {percent(QUANTISED_LOSS, 0)} of exact",
                    change(loss),
                    loss <= QUANTISED_LOSS,
                )
            )
            part = case.gain("shuffled") / case.gain("quantised") if case.gain("quantised") < 0 else float("inf")
            found.append(
                Check(
                    f"{name}: shuffled values get less than a third of the gain", percent(part), part < SHUFFLED_SHARE
                )
            )
        return [replace(check, cut=True) for check in found] if self.cut else found

    def as_json(self) -> dict[str, Any]:
        """Everything as plain numbers, for machines and for tests."""
        result = asdict(self)
        result["checks"] = [asdict(check) for check in self.checks()]
        result["training_cut"] = self.cut
        for key, case in (("in_domain", self.in_domain), ("adapted", self.adapted)):
            result[key]["change"] = {name: case.gain(name) for name in case.perplexity}
        return result


def _at_least(claim: str, case: CaseResult, gain: float) -> Check:
    return Check(claim, change(case.gain("quantised")), case.gain("quantised") <= -gain)


def versions() -> dict[str, str]:
    """Versions of what made the numbers."""
    names = ("torch", "tokenizers", "numpy")
    return {
        "Python": platform.python_version(),
        "knnlm": package_version(),
        **{name: version(name) for name in names},
        "machine": platform.machine(),
    }


def as_report(result: DemoResult) -> Report:
    """The HTML report of a demo run."""
    adapted, inside = result.adapted, result.in_domain
    summary = (
        "A small decoder trained on the docstrings of Python's standard library meets the language reference, which "
        f"it never saw. A datastore of {adapted.entries:,} entries, no training, changes its perplexity on held-out "
        f"topics from {number(adapted.perplexity['lm'])} to {number(adapted.perplexity['quantised'])} "
        f"({change(adapted.gain('quantised'))}); on held-out docstrings a store of its own training text changes it "
        f"from {number(inside.perplexity['lm'])} to {number(inside.perplexity['quantised'])} "
        f"({change(inside.gain('quantised'))})."
    )
    return Report(
        "kNN-LM on Python's own documentation",
        summary,
        [_case(c) for c in result.cases()],
        result.checks(),
        result.made,
        caution=result.caution,
    )


def _case(case: CaseResult) -> Case:
    rows = [
        Row(
            label,
            case.perplexity[name],
            None if name == "lm" else case.gain(name),
            case.tokens_per_second.get(name),
            emphasis=name == "quantised",
        )
        for name, label in _ROWS.items()
    ]
    return Case(case.name.capitalize(), case.text, rows, _facts(case), list(_plots(case)), case.examples)


def _facts(case: CaseResult) -> dict[str, str]:
    held = ", ".join(f"{name} {value:.1f}" for name, value in case.bytes_per_entry.items() if name != "total")
    lm, ngram = case.perplexity["lm"], case.perplexity["ngram"]
    return {
        "model alone, and a 5-gram of its text": f"{number(lm)}, {number(ngram)}: {change(lm / ngram - 1)}",
        "scored": f"{counted(case.tokens, 'test token')} of {counted(case.documents, 'document')}",
        "store": f"{counted(case.entries, 'entry')} of {counted(case.store_documents, 'document')}",
        "chosen on validation text": f"λ {case.lambda_:.2f}, T {case.temperature:.4g}, k {case.k}",
        "bytes per entry on disk": f"{case.bytes_per_entry['total']:.1f} ({held})",
        "test tokens in a 13-gram of the store": percent(case.overlap, 2),
        "seconds": ", ".join(f"{name} {value:.1f}" for name, value in case.seconds.items()),
    }


def _plots(case: CaseResult) -> Iterator[Plot]:
    chosen = {"lambda_": case.lambda_, "k": float(case.k), "temperature": case.temperature}
    for key in CURVES:
        if key in case.curves:
            curve = case.curves[key]
            yield tuning_plot(key, curve.x, curve.y, curve.alone, chosen.get(key), curve.tokens)


def as_terminal(result: DemoResult) -> RenderableType:
    """The result table, what was chosen, a few tokens with their neighbors, and the claims, for rich."""
    parts: list[RenderableType] = [Text(result.caution, style="bold red"), ""] if result.cut else []
    parts += [_result_table(result), "", _facts_table(result)]
    for case in result.cases():
        parts += ["", Text(f"Where predictions come from: {case.name}", style="bold"), ""]
        parts.append(to_table(case.examples[:2], neighbors=3))
    parts += ["", _check_table(result.checks())]
    if result.report:
        parts += ["", Text(f"Report with plots and more neighbors: {result.report}")]
    return Group(*parts)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _result_table(result: DemoResult) -> Table:
    table = _table()
    table.add_column("test perplexity")
    for case in result.cases():
        table.add_column(case.name, justify="right", no_wrap=True)
        table.add_column("change", justify="right", no_wrap=True)
        table.add_column("tok/s", justify="right", no_wrap=True)
    for name, label in _ROWS.items():
        cells = []
        for case in result.cases():
            cells += [
                number(case.perplexity[name]),
                "" if name == "lm" else change(case.gain(name)),
                number(case.tokens_per_second.get(name)),
            ]
        table.add_row(label, *cells, style="bold" if name == "quantised" else "")
    return table


def _facts_table(result: DemoResult) -> Table:
    table = _table()
    table.add_column("")
    for case in result.cases():
        table.add_column(case.name)
    facts = [_facts(case) for case in result.cases()]
    for label in facts[0]:
        table.add_row(label, *(column[label] for column in facts))
    return table


def _style(check: Check) -> str:
    return "bold red" if not check.holds else "yellow" if check.cut else "green"


def _check_table(checks: Sequence[Check]) -> Table:
    table = _table()
    table.add_column("claim")
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("holds")
    for check in checks:
        table.add_row(check.claim, check.measured, Text(check.verdict, _style(check)))
    return table
