"""Parts of a training run: checks before it, a watch while it runs, saving and a summary at its end."""
