"""Finds wrong labels in a training split by how its trainings went, and corrects them."""
