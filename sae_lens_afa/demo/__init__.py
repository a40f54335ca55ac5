"""A small, complete example that needs no network: a language model, its text, and SAEs trained on them.

The model has GPT-2's architecture and was trained by `examples/train_demo_lm.py` on the King James Bible; see
NOTICE.md in this folder for source and licence.
"""

from sae_lens_afa.demo.chapters import DemoText, load_text
from sae_lens_afa.demo.model import load_model, model_folder
from sae_lens_afa.demo.run import demo_folders, features_folder, run_demo

__all__ = ["DemoText", "demo_folders", "features_folder", "load_model", "load_text", "model_folder", "run_demo"]
