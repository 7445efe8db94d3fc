"""The Lightning module, its backbones, head, losses and penalties."""
