"""MViTv2 as a PySlowFast model."""
