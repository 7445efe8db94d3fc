"""Use of trained models: predictions, explanations, exports."""
