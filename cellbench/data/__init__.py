"""Data modules, one file per dataset, and their common parts."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else albumentations asks the network

import cv2

# `files` reports unreadable files itself.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Loader processes and decoding threads already use the cores; OpenCV's own threads fight them.
cv2.setNumThreads(0)
