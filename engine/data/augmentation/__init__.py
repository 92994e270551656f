"""What changes images while training: fast batched keys, torchvision's transforms, mixing."""
