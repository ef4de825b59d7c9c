"""A trained model -> a folder that another program loads."""
