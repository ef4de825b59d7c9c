"""Image tree or archives -> digests.parquet: every file read once.  Never imports torch."""
