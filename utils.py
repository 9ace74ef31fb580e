"""Small helpers that several rooms share: the error tree, validated YAML, row files, whole files written atomically."""

import csv
import difflib
import errno
import functools
import json
import logging
import os
import re
import reprlib
import stat
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader, FileIO, StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

logger = logging.getLogger(__name__)

PROJECT_ROOT = Path(__file__).resolve().parent


_LONGEST_ERROR = 4000


class HarnessError(Exception):
    """A run could not be done; its text, made one line, is for the person at the terminal (exit status 1)."""

    def __init__(self, text: str) -> None:
        line = _escaped(" ".join(line.strip() for line in text.splitlines()))
        super().__init__(line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]} …")


class UsageError(HarnessError):
    """An option, a settings file or a trace is wrong; its text names the thing, what was found, what was expected (exit 2)."""


class Interrupted(HarnessError):
    """The person asked the run to stop before it had a result to keep (exit status 130)."""


class StopRequested(KeyboardInterrupt):
    """A stop request that ends what is running at once; no KeyboardInterrupt of a user's own code is one."""


NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
"""What the machine says when it gives a process no more files, memory or processes."""


def write_failure(what: str, error: OSError) -> HarnessError:
    """The error to raise when a file cannot be written: a full disk is a failure, a wrong place is bad usage."""
    kind = HarnessError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *NO_RESOURCES) else UsageError
    return kind(f"{what}: {error.strerror}")


def printable(text: str, limit: int = 200) -> str:
    """`text` of an outsider as it may stand on a terminal, in a log or in a file: one line of at most `limit` characters.

    Line breaks, escape sequences and whatever else is not shown as a character become backslash escapes; what is longer is cut
    and ends in three dots.
    """
    shown = _escaped(text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def text_of(value: object, convert: Callable[[object], str] = str) -> str:
    """The text of something of a user's own code, which may raise whatever it likes when it is asked for it."""
    try:
        return convert(value)
    except BaseException:  # no reason to lose what that code did
        return f"a {type(value).__name__} without a text"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean x?' for the known name nearest to `name`, or '' where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


class StrictModel(BaseModel):
    """Base of what is read from YAML: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Positive = Annotated[float, Field(gt=0, le=1e9, strict=True)]
NonNegative = Annotated[float, Field(ge=0, le=1e9, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]

MOST_YAML_BYTES, MOST_YAML_VALUES = 2**20, 100_000
Key = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


@contextmanager
def open_to_read(path: Path, most_bytes: int) -> Iterator[BufferedReader]:
    """The regular file at `path`; does not wait for the other end of a pipe.

    Raises:
        UsageError: there is none, it cannot be read, is larger than `most_bytes`, or is a folder, a pipe or a device.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) and not os.path.samestat(found, os.stat(os.devnull)):
                kind = "a pipe" if stat.S_ISFIFO(found.st_mode) else "a device"
                raise UsageError(f"{path}: cannot be read: expected a regular file, found {kind}; save what it gives in a file")
            if found.st_size > most_bytes:
                raise UsageError(f"{path}: cannot be read: expected at most {most_bytes} bytes, found {found.st_size}")
            yield file
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


class _Yaml12Loader(yaml.SafeLoader):
    """YAML as the core schema of YAML 1.2 means it: 010 is ten, 1:30, 1_000, yes and a date are text, 1e0 is a number."""


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", str(loader.construct_scalar(node)).lower()))


_SCALARS_OF_YAML_1_2 = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),  # of YAML 1.1, but no surprise
)


class YamlDumper(yaml.SafeDumper):
    """Quotes whatever a reader of YAML 1.1 or of 1.2 would not take for text."""


_Yaml12Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS_OF_YAML_1_2:
    for _user in (_Yaml12Loader, YamlDumper):
        _user.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """Content of a YAML 1.2 file whose top is a mapping, and the line (from 1) on which each key stands.

    Raises:
        UsageError: the file is missing, unreadable, not YAML, too large, or its top is not a mapping.
    """
    with open_to_read(path, MOST_YAML_BYTES) as file:
        text = file.read().decode()
    try:
        loader = _Yaml12Loader(text)
        root = loader.get_single_node()
        lines = _LinesOfKeys(path).of(root)
        content = None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, LookupError, AttributeError, RecursionError) as error:  # a scalar that its own tag refuses, no end
        raise UsageError(f"{path}: holds what cannot be read: {error}") from None
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content, lines


class _LinesOfKeys:
    """Finds the line of every key; refuses a key that stands twice, and more values than any settings hold, aliases included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[Key, int] = {}
        self._values = 0

    def of(self, root: yaml.Node | None) -> dict[Key, int]:
        """The lines by key."""
        self._walk(root, ())
        return self._lines

    def _walk(self, node: yaml.Node | None, at: Key) -> None:
        self._values += 1
        if self._values > MOST_YAML_VALUES:
            raise UsageError(
                f"{self._path}: expected at most {MOST_YAML_VALUES} values, found more (an alias counts as all it holds)"
            )
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = key.value if isinstance(key.value, str) else str(key.start_mark)
                if (*at, name) in self._lines:
                    raise UsageError(f"{self._path}:{key.start_mark.line + 1}: key {name} stands twice")
                self._lines[(*at, name)] = key.start_mark.line + 1
                self._walk(value, (*at, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._lines[(*at, index)] = value.start_mark.line + 1
                self._walk(value, (*at, index))


def validated(model: type[Model], content: dict[str, Any], source: str, lines: dict[Key, int]) -> Model:
    """`content` as a `model`.

    Args:
        model: a pydantic model that forbids unknown keys.
        content: what was read.
        source: file name for the error text.
        lines: line of each key in that file; keys from elsewhere have none.

    Raises:
        UsageError: one line that names file, line, key, what was found and what was expected; an unknown key is met with the
            nearest known one.
    """
    try:
        return model.model_validate(content)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    error = next((error for error in errors if error["type"] == "extra_forbidden"), errors[0])
    at: Key = tuple(error["loc"])
    while at and at not in lines and len(at) > 1 and at[:-1] in lines:
        at = at[:-1]
    where = f"{source}:{lines[at]}" if at in lines else source
    name = ".".join(map(str, error["loc"])) or "settings"
    if error["type"] == "extra_forbidden":
        nearest = did_you_mean(str(error["loc"][-1]), _known_keys(model, error["loc"][:-1]))
        raise UsageError(f"{where}: unknown key {name}{nearest}")
    if error["type"] == "missing":
        raise UsageError(f"{where}: {name} is missing")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = _EXPECTED.get(error["type"], message)
    found = "" if error["type"] == "value_error" else f", found {_SHORT.repr(error['input'])}"
    expected = message if error["type"] == "value_error" else f"expected {message}"
    raise UsageError(f"{where}: {name}: {expected}{found}")


_EXPECTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "bool_type": "true or false",
    "path_type": "a file name",
    "invalid_key": "a name, in quotation marks where it looks like a number",
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Keys that the model nested at `path` has; a step through a dict or list leads to the model of its values."""
    for step in path:
        field = model.model_fields.get(str(step))
        if field is None:
            continue  # the key of a dict or the index of a list: its model has been entered already
        nested = _nested_model(field.annotation)
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_nested_model, getattr(annotation, "__args__", ()))), None)


def write_json_atomically(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all; see `write_text_atomically`."""
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it there, so that a reader never sees half a file.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


RANDOM_STREAMS = (
    "arrivals",
    "models",
    "slo_classes",
    "deadlines",
    "placement",
    "movement",
    "service_noise",
    "policy",
    "devices_of_arrivals",
    "overhead_noise",
)


def random_stream(seed: int, name: str) -> np.random.Generator:
    """The named child stream of a run's seed; what one stream draws moves no other.

    Args:
        seed: seed of the run.
        name: one of RANDOM_STREAMS; a new name goes to the end of that tuple, since the position is the stream's key.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(RANDOM_STREAMS.index(name),)))


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout this file stands in, with '+dirty' when it was changed since; None outside git; asked once."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(PROJECT_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def supervised_thread(name: str, target: Callable[[], None], on_death: Callable[[HarnessError], None]) -> threading.Thread:
    """A daemon thread, not yet started, that does not die unseen.

    Args:
        name: of the thread.
        target: its life.
        on_death: told, from the thread, of any exception that ends it; the run must not go on as if nothing had happened.
    """

    def run() -> None:
        try:
            target()
        except BaseException as error:  # whatever it is, SystemExit too: nobody else would ever see it
            at = traceback.extract_tb(error.__traceback__)[-1]
            what = printable(f"{type(error).__name__}: {error}")
            on_death(HarnessError(f"the thread {name} died of {what} at {at.filename}:{at.lineno}"))

    return threading.Thread(target=run, name=name, daemon=True)


class RowFiles:
    """CSV files that grow by a row at a time.

    In the background one thread writes: those that produce rows only append to a queue, so that formatting and disk stay off
    the dispatch path, and rows reach the disk within `flush_interval_s`. Without it, where no clock runs meanwhile, whoever
    appends writes, a few thousand rows at a time. The first write error is kept in `error`, told to `on_error`, and ends all
    writing; a file that was removed or moved away is one too. Whatever happens, a file ends with a whole row.

    Args:
        headers: column names of each file, by path.
        on_error: called once, from the thread that writes.
        flush_interval_s: longest time a row waits in memory, in seconds; None to write without a thread.

    Raises:
        OSError: a file cannot be created.
    """

    def __init__(
        self, headers: dict[Path, Sequence[str]], on_error: Callable[[Exception], None], flush_interval_s: float | None = 0.1
    ) -> None:
        self.error: Exception | None = None
        self._on_error = on_error
        self._rows: deque[tuple[Path, Sequence[object]]] = deque()
        with ExitStack() as opened:
            self._files: dict[Path, FileIO] = {path: opened.enter_context(path.open("wb", buffering=0)) for path in headers}
            opened.pop_all()
        self._texts = {path: StringIO() for path in headers}
        self._writers = {path: csv.writer(text, lineterminator="\n") for path, text in self._texts.items()}
        self._written = dict.fromkeys(headers, 0)
        self._closing = threading.Event()
        for path, header in headers.items():
            self._rows.append((path, header))
        self._thread = None
        if flush_interval_s is not None:
            self._thread = supervised_thread("row-writer", functools.partial(self._run, flush_interval_s), self._failed)
            self._thread.start()

    def append(self, path: Path, row: Sequence[object]) -> None:
        """Queue a row for `path`; None becomes an empty field, a bool true or false."""
        self._rows.append((path, row))
        if self._thread is None and len(self._rows) >= _ROWS_AT_ONCE:
            self._write_queued()

    def close(self) -> None:
        """Write what is left and close the files; safe to call twice."""
        if self._thread:
            self._closing.set()
            self._thread.join()
        elif not self._closing.is_set():
            self._closing.set()
            self._finish()

    def _run(self, interval_s: float) -> None:
        while not self._closing.wait(interval_s) and not self.error:
            self._write_queued()
        self._finish()

    def _finish(self) -> None:
        self._write_queued()
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            self._on_error(error)

    def _write_queued(self) -> None:
        """Write what is queued; after an error, drop it."""
        try:
            for _ in range(len(self._rows)):
                path, row = self._rows.popleft()
                if self.error is None:
                    self._writers[path].writerow([_BOOL_TEXT[value] if isinstance(value, bool) else value for value in row])
                if self._thread:
                    time.sleep(0)  # between two rows, whoever waits for the interpreter gets it at once
            if self.error is None:
                for path in self._files:
                    self._write(path)
        except Exception as error:  # a row that cannot be formatted is lost like one for which there is no space
            self._failed(error)

    def _write(self, path: Path) -> None:
        """Write the rows that were formatted for a file: at once, and whole ones only where the disk is full."""
        file, text = self._files[path], self._texts[path]
        rows, done = text.getvalue().encode(), 0
        text.seek(0)
        text.truncate()
        try:
            while done < len(rows):
                done += file.write(rows[done:])
        except OSError:
            with suppress(OSError):  # a pipe or a device has no end to set
                file.truncate(self._written[path] + rows.rfind(b"\n", 0, done) + 1)
            raise
        self._written[path] += done
        if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise FileNotFoundError(errno.ENOENT, f"{path.name} was replaced")


_ROWS_AT_ONCE = 4096
_BOOL_TEXT = {True: "true", False: "false"}
