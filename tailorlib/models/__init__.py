"""Model families: checkpoints, architectures, stitching."""
