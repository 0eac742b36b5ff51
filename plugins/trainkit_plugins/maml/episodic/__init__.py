"""Training and testing on few-shot tasks, whatever learns from them."""
