"""The model card: each module computes one part, and `render` fills the template."""
