"""What a checkpoint holds, read: the model, its texts, images and sounds."""
