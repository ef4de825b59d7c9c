"""Vision Transformers under timm's parameter names."""
