"""What a model card says, a part of it in each file; `model_card` asks them and fills the template."""
