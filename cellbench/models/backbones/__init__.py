"""Backbones by name: own networks, torchvision, timm."""
