"""The line that the command prints for a failure, of this package and of the libraries below it."""

from __future__ import annotations

import errno
import json
import zipfile

import httpx
import numpy as np
import pytest
import torch
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError

from sae_lens_afa.cli.errors import describe, in_flags
from sae_lens_afa.hub import HubError


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def json_error() -> Exception:
    with pytest.raises(json.JSONDecodeError) as raised:
        json.loads("{")
    return raised.value


def numpy_memory_error() -> Exception:
    with pytest.raises(MemoryError) as raised:
        np.empty(1 << 55)
    return raised.value


def device_error() -> Exception:
    with pytest.raises((RuntimeError, AssertionError)) as raised:
        torch.zeros(1, device="cuda:99")
    return raised.value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("tokens must be >= 1, got 0."), "tokens must be >= 1, got 0."),
        (HubError("cannot read me/saes: no such repository."), "cannot read me/saes: no such repository."),
        (FileNotFoundError("runs/a has no cfg.json."), "runs/a has no cfg.json."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: no such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: no space left on the disk"),
        (OSError("\n\n---\nrepo is not a valid model identifier\nMore advice"), "repo is not a valid model identifier"),
        (ValueError("unknown model; known: " + "gpt2, " * 1000), None),
        (MemoryError(), "not enough memory: MemoryError. Take smaller batches, fewer tokens or a smaller SAE."),
        (numpy_memory_error(), "not enough memory: Unable to allocate 256. PiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB."), "not enough memory: CUDA out of memory."),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "not enough memory: [enforce fail",
        ),
        (SafetensorError("Error while deserializing header: incomplete"), "a file cannot be read or written: it is"),
        (zipfile.BadZipFile("File is not a zip file"), "a file cannot be read or written: it is damaged"),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), "a file cannot be read or written: it is"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "a file is not what its name says"),
        (
            caused_by(
                DatasetGenerationError("An error occurred while generating the dataset"), json_error()
            ),
            "a file is not what its name says, JSON or text in UTF-8 (Expecting property name",
        ),
        (DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub."), "Dataset 'x' doesn't exist"),
        (httpx.ConnectError("[Errno 111] refused"), "Hugging Face Hub: the connection failed (ConnectError)"),
        (HFValidationError("Repo id must be in the form"), "Hugging Face Hub: Repo id must be in the form"),
        (device_error(), "the device cannot be used: "),
        (KeyError("architecture"), "KeyError: no entry 'architecture' (unexpected: run it again with --debug"),
        (StopIteration(), "StopIteration: StopIteration (unexpected: run it again with --debug"),
        (RuntimeError("shapes do not match"), "RuntimeError: shapes do not match (unexpected: "),
        (TypeError("f() got an unexpected argument"), "TypeError: f() got an unexpected argument (unexpected: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_the_line_of_an_error(error, line):
    said = describe(error, {})
    assert said.startswith(line or "unknown model; known: gpt2, gpt2,")
    assert len(said) <= 400
    assert "\n" not in said


def test_a_type_error_that_this_package_raises_is_written_for_its_user():
    from sae_lens_afa.hub import push_to_hub

    with pytest.raises(TypeError) as raised:
        push_to_hub([], "me/saes")  # pyright: ignore[reportArgumentType]
    assert describe(raised.value, {}) == "saes must map ids to SAEs or folders, got a list."


FLAGS = {
    name: "--" + name.replace("_", "-")
    for name in ("sae", "sae_id", "model", "dataset", "tokens", "context_size", "overwrite", "device", "release")
} | {"positions": "--position"}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("tokens must be at least 1, got 0.", "--tokens must be at least 1, got 0."),
        ("it holds 3 tokens of the model.", "it holds 3 tokens of the model."),
        ("context_size is 4, but the model reads 2: give 2.", "--context-size is 4, but the model reads 2: give 2."),
        ("out exists; pass overwrite=True to replace it.", "out exists; pass --overwrite to replace it."),
        ("Try device='cpu'.", "Try --device cpu."),
        ("release x needs sae_id, one of 2.", "--release x needs --sae-id, one of 2."),
        ("a does not say its dataset_path: give dataset.", "a does not say its dataset_path: give --dataset."),
        ("give model and dataset, not tokens.", "give --model and --dataset, not tokens."),
        ("leave out dataset, context_size.", "leave out --dataset, --context-size."),
        ("positions must be below 2.", "--position must be below 2."),
        ("give model (on the command line --demo).", "give --demo (or --model)."),
        ("--model is missing, runs/context_size is not.", "--model is missing, runs/context_size is not."),
        ("'sae_id' is a word.", "'sae_id' is a word."),
        ("saes must map ids to SAEs.", "saes must map ids to SAEs."),
    ],
)
def test_parameters_become_the_flags_of_the_verb(said, line):
    assert in_flags(said, FLAGS) == line
    assert in_flags(line, FLAGS) == line
    assert describe(ValueError(said), FLAGS) == line


def test_a_verb_without_the_parameter_leaves_the_message_as_it_is():
    said = "context_size must be at least 1, got 0."
    assert in_flags(said, {"tokens": "--tokens"}) == in_flags(said, {}) == said
