"""What this machine can do, measured; what a training run would take, calculated from that."""
