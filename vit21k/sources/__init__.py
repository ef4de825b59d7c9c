"""Pictures of elsewhere -> an image tree, and its manifests: CIFAR, class folders, Hugging Face."""
