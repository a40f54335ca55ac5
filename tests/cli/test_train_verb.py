"""`sae-lens-afa train`: SAELens' flags, what is refused, and an interrupted run that goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_helpers import interrupt_when_training, train_flags
from sae_lens import SAE

from sae_lens_afa import TopAFASAE
from sae_lens_afa.cli.runner_flags import parse_config, train_with_flags


def test_train_takes_saelens_flags_and_saves_an_inference_sae(tmp_path, text, run):
    done = run(*train_flags(text, 1024))
    assert done.code == 0, done.stderr
    sae = SAE.load_from_disk(tmp_path / "out")
    assert isinstance(sae, TopAFASAE)
    assert sae.cfg.metadata.training_architecture_details["afa_coefficient"] == 0.0625


def test_train_takes_the_settings_of_afa_threshold():
    flags = train_flags(Path("text"), 512)[1:]
    flags[flags.index("top_afa")] = "afa_threshold"
    flags[flags.index("--afa-coefficient=0.0625")] = "--threshold-scale=0.9"
    sae = parse_config([*flags, "--reseed-steps", "7", "--threshold_start", "0.25"]).sae
    assert sae.architecture() == "afa_threshold"
    assert (sae.threshold_scale, sae.reseed_steps, sae.threshold_start) == (0.9, 7, 0.25)


def test_train_help_lists_the_flags_of_saelens_and_of_top_afa(run):
    shown = run("train", "--architecture", "top_afa", "--help").stdout
    for flag in ("--model_name", "--hook_name", "--training_tokens", "--resume_from_checkpoint", "--afa_coefficient"):
        assert flag in shown
    assert "top_afa" in run("train", "--help").stdout


@pytest.mark.slow
def test_an_interrupted_train_says_how_to_continue_and_continues(tmp_path, text, run):
    code, stderr = interrupt_when_training(train_flags(text, 256 * 2000), tmp_path)
    assert code == 130
    assert "Traceback" not in stderr
    checkpoint = Path(re.search(r"--resume-from-checkpoint (\S+)", stderr).group(1))
    reached = int(checkpoint.name)
    assert 0 < reached < 256 * 2000
    settings = json.loads((tmp_path / checkpoint / "runner_cfg.json").read_text())
    # Continued for ten steps more than it had: the flags of the first call, with a nearer end.
    flags = train_flags(text, reached + 256 * 10)
    done = run(*flags, "--resume-from-checkpoint", str(checkpoint))
    assert done.code == 0, done.stderr
    assert settings["sae"]["d_sae"] == 256
    assert (tmp_path / "out" / "sae_weights.safetensors").is_file()


def test_the_resume_flag_alone_takes_the_settings_from_the_checkpoint(tmp_path, text, run):
    assert run(*train_flags(text, 256 * 8), "--n_checkpoints", "1").code == 0
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/*")
    (tmp_path / "out" / "sae_weights.safetensors").unlink()
    done = run("train", f"--resume-from-checkpoint={checkpoint}")
    assert done.code == 0, done.stderr
    assert SAE.load_from_disk(tmp_path / "out").cfg.d_sae == 256


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--apply_b_dec_to_input", "false"], "apply_b_dec_to_input must be True"),
        (["--d_sae", "0"], "d_sae must be an integer >= 1, got 0"),
        (["--device", "abacus", "--n_batches_in_buffer", "64"], "device 'abacus' cannot be used here"),
        (["--resume-from-checkpoint", "nowhere"], "resume_from_checkpoint: nowhere is not a folder"),
    ],
)
def test_a_wrong_run_is_one_line_and_leaves_nothing_behind(tmp_path, args, message, run):
    done = run("train", *([] if "nowhere" in args else ["--architecture", "top_afa"]), *args)
    assert done.code == 1
    assert message in done.error
    assert not any(tmp_path.iterdir())


def test_an_output_that_is_taken_names_the_flag(tmp_path, text, run):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cfg.json").write_text("an SAE's")
    assert "pass --overwrite" in run(*train_flags(text, 1024)).error
    assert "overwrite=True" not in run(*train_flags(text, 1024)).error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--architecture", "top_afa", "--k", "32"], "top_afa has no --k; it is an option of topk, "),
        (["--architecture=top_afa", "--k=32"], "top_afa has no --k"),
        (["--architecture", "top_afa", "--target", "0.7"], "unknown flag --target; did you mean --target_ratio?"),
        (["--architecture", "topk", "--afa-coefficient", "1"], "topk has no --afa_coefficient; .* of top_afa"),
        (["--architecture", "topk", "--training-token", "1"], "--training_token; did you mean --training_tokens?"),
        (["--architecture", "top_afa", "--qqqqqq", "1"], "unknown flag --qqqqqq; see sae-lens-afa train --help"),
        (["--architecture", "top_aff"], "--architecture 'top_aff' is not known; near matches: top_afa"),
        (["--architecture", "topk", "--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
        (["--architecture", "topk", "--lr"], "--lr: expected one argument"),
        (["stray", "--lr", "1"], "'stray' is not a flag"),
        (["--architecture", "mutual_choice", "--d_sae", "16"], "k must be at most 16"),
    ],
)
def test_flags_are_whole_and_known(args, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_config(args)
    assert "\n" not in str(raised.value)


def test_dashes_and_underscores_are_one():
    for spelt in ("--training-tokens", "--training_tokens"):
        with pytest.raises(ValueError, match="training_tokens is 100, less than one batch"):
            train_with_flags(["--architecture", "top_afa", spelt, "100", "--n-batches-in-buffer", "64"])
