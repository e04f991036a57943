"""What is measured, one file a measure; each adds numbers to a row's samples, one a run."""
