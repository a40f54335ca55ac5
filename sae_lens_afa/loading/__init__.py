"""Models, text and SAEs by name, file or folder: what every command and the runner take, with one wording of errors.

Import from its modules: `models`, `text`, `saes`, `gpt2_folder`. Nothing is imported here, so that `names` stays light.
"""
