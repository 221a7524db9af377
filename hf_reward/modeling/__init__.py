"""A stock sequence classifier as a reward model: head, packing, rewards, checkpoint record."""
