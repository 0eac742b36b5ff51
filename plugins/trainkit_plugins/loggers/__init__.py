"""What a run logs, sent to TensorBoard or Weights & Biases as well."""
