"""What a composed model is trained on and measured by."""
