"""Trained models used: predictions, explanations, exports."""
