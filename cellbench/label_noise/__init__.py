"""Detection and correction of wrong labels in a training split."""
