"""Data modules, one file a dataset, and what they share."""

import cv2

# Loader processes and decoding threads already use the cores; OpenCV's own threads fight them.
cv2.setNumThreads(0)
