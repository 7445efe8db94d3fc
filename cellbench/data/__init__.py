"""Data modules, one file a dataset, and what they share."""

import os

os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what cannot be read is said once, by us
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else albumentations asks the network

import cv2

# Loader processes and decoding threads already use the cores; OpenCV's own threads fight them.
cv2.setNumThreads(0)
