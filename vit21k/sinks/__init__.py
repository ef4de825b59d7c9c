"""Where a run's lines go beside its own file: TensorBoard, W&B, MLflow."""
