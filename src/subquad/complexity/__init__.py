"""Time and memory as they grow with n."""
