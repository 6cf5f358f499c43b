"""Where the values of a training go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""
