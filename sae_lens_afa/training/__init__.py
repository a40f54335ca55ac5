"""What surrounds a training run: checks before it, what is watched while it runs, what is said at its end."""
