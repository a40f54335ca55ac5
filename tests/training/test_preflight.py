"""What is refused before a run: each in one line that names the field, with nothing loaded and nothing written."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple

import pytest
from datasets import Dataset, DatasetDict
from runs import runner_config
from sae_lens import BatchTopKTrainingSAEConfig, StandardTrainingSAEConfig, TopKTrainingSAEConfig, TrainingSAE

from sae_lens_afa import (
    AFAPursuitTrainingSAE,
    AFAPursuitTrainingSAEConfig,
    AFAThresholdTrainingSAEConfig,
    FeatureChoiceTrainingSAEConfig,
    TopAFATrainingSAEConfig,
)
from sae_lens_afa.demo import model_folder
from sae_lens_afa.runner import InterruptibleTrainingRunner


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_batch_size_tokens": 256}, r"n_batches_in_buffer \* context_size = 4 \* 32 = 128 tokens .* at least 8"),
        ({"seqpos_slice": (0, 8)}, r"= 4 \* 8 = 32 tokens .* set n_batches_in_buffer to at least 16"),
        ({"training_tokens": 100}, "training_tokens is 100, less than one batch of train_batch_size_tokens = 128"),
        ({"lr": 0}, "lr must be a number above 0, got 0"),
        ({"lr": float("nan")}, "lr must be a number above 0"),
        ({"lr_warm_up_steps": 4, "lr_decay_steps": 3}, r"= 4 \+ 3 are more than the run's 6 steps"),
        ({"store_batch_size_prompts": 0}, "store_batch_size_prompts must be at least 1"),
        ({"dtype": "float23"}, "dtype must be one of float32, .*got 'float23'"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
        ({"llm_device": "nonsense"}, "llm_device 'nonsense' cannot be used here.*Try llm_device='cpu'"),
        ({"output_path": ""}, "output_path is empty"),
        ({"feature_sampling_window": 0}, "feature_sampling_window must be at least 1"),
        ({"n_checkpoints": -1}, "n_checkpoints must not be negative"),
        ({"seed": 2**70}, "seed must be from 0 to"),
        ({"adam_beta1": 1.5}, "adam_beta1 must be at least 0 and below 1, got 1.5"),
        ({"lr_scheduler_name": "foo"}, "lr_scheduler_name must be one of constant, .*got 'foo'"),
        ({"dataset_path": ""}, "dataset_path is not given"),
        ({"dataset_path": "nosuch.txt"}, r"dataset_path nosuch\.txt: there is no such file or folder"),
        ({"model_name": "/no/such/model", "dataset_path": "on/hub"}, "model_name /no/such/model is not a folder"),
        ({"output_path": "/proc/nowhere/sae"}, "output folder /proc/nowhere/sae cannot be written"),
        ({"checkpoint_path": "/proc/nowhere/sae"}, "checkpoint_path /proc/nowhere/sae/.* cannot be written"),
        ({"context_size": 1, "n_batches_in_buffer": 200}, "context_size is 1, and with prepend_bos that one token is"),
        ({"use_cached_activations": True}, "cached_activations_path: activations/.* is not a folder"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, fields, message):
    def load(*args, **kwargs):
        raise AssertionError("the model is loaded")

    if "model_name" not in fields:
        monkeypatch.setattr("sae_lens_afa.runner.load_language_model", load)
    with pytest.raises((ValueError, OSError), match=message) as raised:
        InterruptibleTrainingRunner(runner_config(tmp_path, **{"dataset_path": "on/hub", **fields}))
    assert "\n" not in str(raised.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_size": 129, "training_tokens": 6 * 129}, "context_size is 129, but the model reads at most 128"),
        ({"hook_name": "blocks.1.attn.hook_result"}, "does not compute it: it does so with use_attn_result"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "set reshape_activations='hook_z'"),
        ({"hook_name": "blocks.7.hook_resid_pre"}, r"no hook 'blocks\.7\.hook_resid_pre'; did you mean"),
        ({"sae": {"d_in": 100}}, "set d_in=192"),
        ({"hook_head_index": 1}, "hook_head_index is 1, but blocks.1.hook_resid_pre has no heads"),
    ],
)
def test_what_the_model_does_not_allow_is_refused(tmp_path, model, dataset, fields, message):
    with pytest.raises(ValueError, match=message):
        InterruptibleTrainingRunner(runner_config(tmp_path, **fields), override_model=model, override_dataset=dataset)
    assert not any(tmp_path.iterdir())


def test_text_shorter_than_one_context_is_refused(tmp_path, model):
    (tmp_path / "short.txt").write_text("In the beginning")
    cfg = runner_config(tmp_path, dataset_path=str(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match=r"short\.txt is shorter than one context of context_size = 32 tokens"):
        InterruptibleTrainingRunner(cfg, override_model=model)


def test_a_data_set_without_rows_is_refused(tmp_path, model):
    with pytest.raises(ValueError, match="override_dataset holds no text"):
        InterruptibleTrainingRunner(
            runner_config(tmp_path), override_model=model, override_dataset=Dataset.from_dict({"text": []})
        )


def test_an_sae_that_is_given_is_the_one_of_the_configuration(tmp_path, model, dataset):
    others = AFAThresholdTrainingSAEConfig(d_in=192, d_sae=256), TopAFATrainingSAEConfig(d_in=192, d_sae=64)
    for config, message in zip(others, ("architecture 'afa_threshold'", "d_sae 64"), strict=True):
        sae = TrainingSAE.from_dict(config.to_dict())
        with pytest.raises(ValueError, match=f"override_sae has {message}"):
            InterruptibleTrainingRunner(runner_config(tmp_path), dataset, model, sae)


def test_paths_may_be_paths_and_data_a_dict_with_rows_that_are_empty(tmp_path, model, dataset):
    data = DatasetDict(train=Dataset.from_dict({"text": [*dataset["text"][:20], None, None]}))
    cfg = runner_config(tmp_path, steps=1, output_path=tmp_path / "out")
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=data).run()
    assert (tmp_path / "out" / "cfg.json").is_file()


def test_looking_at_the_text_takes_nothing_from_it(tmp_path, model, dataset):
    runner = InterruptibleTrainingRunner(runner_config(tmp_path), override_model=model, override_dataset=dataset)
    assert runner.activations_store.n_dataset_processed == 0
    first = runner.activations_store.get_batch_tokens(1)
    other = InterruptibleTrainingRunner(runner_config(tmp_path), override_model=model, override_dataset=dataset)
    assert first.equal(next(other.activations_store._iterate_tokenized_sequences())[None])


def test_a_disk_that_is_too_small_is_told_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    cfg = runner_config(tmp_path, n_checkpoints=2, dataset_path="on/hub", model_name=str(model_folder()))
    # 98,496 float32 numbers; a checkpoint has them and Adam's two moments.
    with pytest.raises(OSError, match=r"3\.2 MB are needed in .* and 2 checkpoints, but only 0\.0 MB are free"):
        InterruptibleTrainingRunner(cfg)


def test_a_folder_that_holds_something_is_left_alone(tmp_path, model, dataset):
    (tmp_path / "out").mkdir()
    cfg = runner_config(tmp_path, steps=1)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)  # empty: as good as new
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset, overwrite=True).run()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"  # not an SAE's folder: nothing of it is deleted
    assert (tmp_path / "out" / "cfg.json").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file exists and is not a folder"):
        InterruptibleTrainingRunner(
            runner_config(tmp_path, output_path=str(tmp_path / "file")),
            override_model=model,
            override_dataset=dataset,
            overwrite=True,
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_without_permission_is_told_first(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(NotADirectoryError, match="locked is not a writable folder"):
        InterruptibleTrainingRunner(runner_config(tmp_path, output_path=str(tmp_path / "locked" / "sae")))


SIZES = {"d_in": 192, "d_sae": 64}


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (AFAThresholdTrainingSAEConfig(**SIZES), "threshold_warm_up_steps is 1000, but the run has 6 steps.*3 or less"),
        (
            AFAPursuitTrainingSAEConfig(**SIZES, growth_steps=1000),
            "growth_steps is 1000, but the run has 6 steps.*Set growth_steps to 2",
        ),
        (StandardTrainingSAEConfig(**SIZES, l1_warm_up_steps=6), "l1_warm_up_steps is 6, but the run has 6 steps"),
        (
            FeatureChoiceTrainingSAEConfig(**SIZES, k=4, feature_choice_start_step=50),
            "feature_choice_start_step is 50, but the run has 6 steps: Feature Choice never starts",
        ),
    ],
)
def test_phases_longer_than_the_run_are_warned_of_at_the_start(tmp_path, model, dataset, sae, message):
    cfg = runner_config(tmp_path)
    cfg.sae = sae
    with pytest.warns(UserWarning, match=message) as warned:
        InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    assert __file__ in {warning.filename for warning in warned}  # it points at the user's line


def test_a_dictionary_grows_over_two_fifths_of_the_run_unless_told_otherwise(tmp_path, model, dataset, recwarn):
    for given, expected in ((None, 2), (3, 3), (0, 0)):
        cfg = runner_config(tmp_path)
        cfg.sae = AFAPursuitTrainingSAEConfig(**SIZES, growth_steps=given)
        runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
        assert runner.sae.cfg.growth_steps == expected
    cfg = runner_config(tmp_path)
    cfg.sae = AFAPursuitTrainingSAEConfig(**SIZES)
    own = AFAPursuitTrainingSAE(AFAPursuitTrainingSAEConfig(**SIZES))
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset, override_sae=own)
    assert runner.sae.cfg.growth_steps == 2
    assert not any("growth_steps" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_pursuit_without_its_compiled_kernel_is_warned_of_at_the_start(
    tmp_path, model, dataset, backend, monkeypatch, recwarn
):
    monkeypatch.setenv("SAE_LENS_AFA_BACKEND", backend)
    cfg = runner_config(tmp_path)
    cfg.sae = AFAPursuitTrainingSAEConfig(**SIZES, growth_steps=2)
    InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    said = [str(warning.message) for warning in recwarn if "ten times slower" in str(warning.message)]
    assert len(said) == (backend == "torch")


@pytest.mark.parametrize("config", [BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig])
def test_a_threshold_that_misses_its_k_is_warned_of_at_the_end(tmp_path, model, dataset, config, recwarn):
    cfg = runner_config(tmp_path, steps=2, output_path=None)
    cfg.sae = config(**SIZES, k=2)
    runner = InterruptibleTrainingRunner(cfg, override_model=model, override_dataset=dataset)
    if config is BatchTopKTrainingSAEConfig:  # its threshold starts from 0 and moves by a hundredth of the way
        with pytest.warns(UserWarning, match=r"batchtopk was trained for k = 2 .* it has \d+\.\d: train for more"):
            runner.run()
    else:
        runner.run()
        assert not any("was trained for k" in str(warning.message) for warning in recwarn)
