"""Detection and segmentation engines: child processes that train what they are handed and write down what they saw."""
