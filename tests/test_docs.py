"""What README, docs and docstrings show is true: code runs, commands parse, links lead somewhere, the site builds."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import distributed
from torch.utils.data import DataLoader, TensorDataset

import pof
from pof.app import cli
from pof.app.methods import METHODS
from tests.cases import batch, mlp
from tests.integrations.trainers import QUIET
from tests.standins import stand_ins

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(pof.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not executed:(?P<reason>[^>]*)-->\n)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```",
    flags=re.MULTILINE | re.DOTALL,
)
LITERAL = re.compile(r"::\n\n(?P<code>(?:(?: {4,}[^\n]*)?\n)+)")
SHELL = {"bash", "sh", "shell", "console"}
# What cannot run in one process on a CPU: few, each with its reason.
MOST_NOT_EXECUTED = 6
PUBLIC = (
    "pof",
    "pof.combine",
    "pof.flatness",
    "pof.optim",
    "pof.regularizers",
    "pof.methods",
    "pof.data",
    "pof.models",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``line`` is that of its first line of code."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["language"], found["code"], found["reason"])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON_PAGES = list(dict.fromkeys(b.page for b in BLOCKS if b.language == "python" and b.reason is None))
SHELL_BLOCKS = [b for b in BLOCKS if b.language in SHELL]
BATCH_JOBS = [b for b in BLOCKS if b.language == "slurm"]


def execute(code: str, name: str, line: int, namespace: dict[str, Any]) -> None:
    # Empty lines in front: a traceback then names the line of the page.
    exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)


# Lightning's own, of a name that torch 2.14 has renamed.
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:rho is 0.*does not fit:UserWarning")  # the stand-in is not trained
@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    namespace = stand_ins(page.read_text(encoding="utf-8"))
    try:
        for block in blocks_of(page):
            if block.language == "python" and block.reason is None:
                execute(block.code, page.name, block.line, namespace)
        assert not distributed.is_initialized(), "a page ends the process group that it made"
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_the_notebook_of_the_tutorial_has_the_code_of_the_page() -> None:
    """The page is executed above; jupytext must find the same blocks in it."""
    jupytext = pytest.importorskip("jupytext", reason="jupytext makes the notebook: pip install jupytext")
    page = ROOT / "docs" / "tutorial.md"
    blocks = [block for block in blocks_of(page) if block.language == "python"]
    cells = [cell for cell in jupytext.read(page).cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells] == [block.code.rstrip("\n") for block in blocks]
    assert len(cells) > 5 and all(block.reason is None for block in blocks), "every block is executed"


def literal_blocks() -> Iterator[tuple[str, str, str]]:
    """Code in docstrings: module, name and the blocks after ``::``, one text per docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                assert ">>>" not in text and "```" not in text, f"{path.name}: show code after '::'"
                code = [textwrap.dedent(found["code"]) for found in LITERAL.finditer(text + "\n")]
                if code:
                    module = ".".join(("pof", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
                        ".__init__"
                    )
                    yield module, getattr(node, "name", "module"), "\n".join(code)


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize(("module", "name", "code"), [pytest.param(*f, id=f"{f[0]}.{f[1]}") for f in literal_blocks()])
def test_python_of_a_docstring_runs(
    module: str, name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pytest.importorskip(module, reason=f"the example needs {module}", exc_type=ImportError)
    # The names of the module itself are at hand, as for its readers.
    execute(code, name, 1, vars(import_module(module)) | stand_ins(code))


def test_docstrings_with_code_are_found() -> None:
    assert {"SAM", "MSAM", "with_reference"} <= {name for _, name, _ in literal_blocks()}


def test_few_blocks_are_not_executed_and_each_says_why() -> None:
    skipped = [block for block in BLOCKS if block.reason is not None]
    for block in skipped:
        assert len(block.reason.split()) >= 3, f"{block.place}: say why it is not executed"  # type: ignore[union-attr]
        if block.language == "python":
            compile(block.code, block.place, "exec")
    assert len(skipped) <= MOST_NOT_EXECUTED, [block.place for block in skipped]
    fences = sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert fences == 2 * len(BLOCKS), "an indented block escapes these tests"
    assert {block.language for block in BLOCKS} <= SHELL | {"slurm", "python", "yaml", "text", ""}, (
        "these languages are tested"
    )
    comments = sum(page.read_text(encoding="utf-8").count("\n<!-- not executed") for page in PAGES)
    assert comments == len(skipped), "'not executed' belongs directly before its block"


def test_readme_example_moves_the_extractor_only() -> None:
    model = mlp()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    loader = DataLoader(TensorDataset(*batch(64)), batch_size=16, shuffle=True)
    example = next(b for b in blocks_of(ROOT / "README.md") if b.language == "python")
    execute(example.code, "README.md", example.line, {"your_trained_model": model, "your_loader": loader})
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved == {"body.weight", "body.bias"}


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block as words, without prompts, comments and variables in front."""
    text = re.sub(r"\\\n", " ", block.code)
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [list(_without_variables(line)) for line in words if line]


def _without_variables(words: list[str]) -> list[str]:
    return words[1:] if re.fullmatch(r"[A-Z_0-9]+=.*", words[0]) else words


def arguments_of_pof(words: list[str]) -> list[str] | None:
    """What ``pof`` itself is given, also behind a launcher."""
    if words[0] == "pof":
        return words[1:]
    for position in range(1, len(words)):
        if words[position] == "pof" and words[position - 1] in {"-m", "--module", "--no-python", "--no_python"}:
            return words[position + 1 :]
    return None


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: block.place)
def test_commands_parse(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    # A recipe or configuration is named from the repository's root.
    monkeypatch.chdir(ROOT)
    for words in commands_of(block):
        arguments = arguments_of_pof(words)
        if arguments is None:
            _check_other_command(words, block.place)
        else:
            cli.parse(arguments)


@pytest.mark.parametrize("block", BATCH_JOBS, ids=lambda block: block.place)
def test_the_command_of_a_batch_job_parses(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    own = [words[words.index("pof") + 1 :] for words in commands_of(block) if "pof" in words]
    assert len(own) == 1
    cli.parse(own[0])


def _check_other_command(words: list[str], place: str) -> None:
    """Make targets and scripts that are named exist; other programs are not ours."""
    program = words[0]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{place}: {shlex.join(words)}"
    for word in words[1:]:
        if word.endswith(".py") and "/" in word and not word.startswith(("/", "path/")):
            assert (ROOT / word).is_file(), f"{place}: {word}"
    allowed = {"make", "pip", "python", "python3", "torchrun", "accelerate", "pytest", "apt-get", "cd", "export"}
    assert program in allowed, f"{place}: {program}"


def runs_on_digits(block: Block) -> bool:
    """Whether all of a block is ``pof`` on data that are at hand: it then runs as it stands."""
    data = set(re.findall(r"--data[ =](\S+)", block.code))
    return block.reason is None and data == {"digits"} and all(words[0] == "pof" for words in commands_of(block))


@pytest.mark.parametrize("block", [b for b in SHELL_BLOCKS if runs_on_digits(b)], ids=lambda block: block.place)
def test_commands_on_digits_run(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands_of(block):
        code = cli.main(words[1:])
        assert code == 0, f"{block.place}: {shlex.join(words)}\n{capsys.readouterr().err}"


def test_a_block_of_commands_is_run() -> None:
    assert any(runs_on_digits(block) for block in SHELL_BLOCKS)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in {"yaml", "yml"}], ids=lambda block: block.place)
def test_yaml_parses(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.code), dict | list)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_card(name: str) -> None:
    folder = ROOT / "docs" / "methods"
    averages = {"swa", "ema", "lawa"}
    card = folder / ("averages.md" if name in averages else f"{'late-sam' if name == 'rewarm' else name}.md")
    text = card.read_text(encoding="utf-8").lower()
    for part in ("cost", "when it does not help", "equation", "settings"):
        assert part in text, part


def headings_on_github(page: Path) -> set[str]:
    """Anchors as a repository's viewer makes them; MkDocs has its own, which differ around punctuation."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere_on_the_site_and_beside_it() -> None:
    docs = ROOT / "docs"
    for page in PAGES:
        links = re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
        for target, anchor in links:
            found = (page.parent / target).resolve() if target else page
            assert found.exists(), f"{page.relative_to(ROOT)}: {target}"
            # Entries of the API reference exist on the site only; elsewhere the page opens at its top.
            known = anchor.startswith("pof.") or not anchor or anchor in headings_on_github(found)
            assert known, f"{page.relative_to(ROOT)}: {target}#{anchor}: not the same on the site and in a repository"
            if page.is_relative_to(docs):
                assert found.is_relative_to(docs), f"{page.relative_to(ROOT)}: {target} is not part of the site"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # The two banners say that MkDocs 2 will have no plugins; constraints.txt has 1.x.
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert made.returncode == 0 and "WARNING" not in made.stderr, made.stderr
    return folder


def test_site_builds_without_warnings_and_shows_every_page(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in PAGES[2:]}
    shown = {page.relative_to(site).parent for page in site.rglob("index.html")}
    assert {page.parent if page.name == "index" else page for page in pages} == shown


def public_of(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a module exports, or, where it does not say, defines; type aliases have no page."""
    own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", [name for name in own if not name.startswith("_")]):
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            yield name, thing


def test_api_reference_has_every_public_name(site: Path) -> None:
    _, content = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)
    documented = {line.split(" ")[0] for line in zlib.decompress(content).decode().splitlines()}
    integrations = [f"pof.integrations.{path.stem}" for path in (PACKAGE / "integrations").glob("[!_]*.py")]
    for module_name in (*PUBLIC, *integrations):
        for name, thing in public_of(import_module(module_name)):
            # A function that hides the module of its name (pof.fit) is listed by its full path.
            paths = {f"{module_name}.{name}", f"{thing.__module__}.{thing.__qualname__}"}
            assert paths & documented, f"{module_name}.{name} is on no page of docs/api"


def test_api_start_page_links_every_name_of_the_door() -> None:
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    # Those of pof.methods are on one page, named as a whole: a new method need not be listed.
    assert "[pof.methods](methods.md)" in text
    assert set(re.findall(r"\[(\w+)\]\(\w+\.md#", text)) == set(pof.__all__) - set(pof.methods.__all__)


def test_docstrings_show_no_raw_references(site: Path) -> None:
    for page in (site / "api").rglob("index.html"):
        assert not re.findall(r":(?:func|class|meth|mod):", page.read_text(encoding="utf-8")), page.parent.name


def test_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    for key in ("cff-version", "message", "title", "authors", "version", "license", "references"):
        assert citation.get(key), key
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == pof.__version__
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for paper in citation["references"]:
        assert paper["type"] and paper["title"] and paper["authors"] and paper["year"]
        arxiv = next(i["value"] for i in paper["identifiers"] if i["value"].startswith("arXiv:"))
        assert arxiv.removeprefix("arXiv:") in text, "the README cites the same papers"
    assert len(citation["references"]) == 2
