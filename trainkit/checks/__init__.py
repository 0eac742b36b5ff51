"""What is looked at before and during a run, so that nothing goes wrong unseen."""
